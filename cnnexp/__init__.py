"""A laboratory for one question: why do convolutions work?"""

__version__ = "0.1.0"
