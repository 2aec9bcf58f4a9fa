"""Helpers that every other package may use: errors, text, the terminal, the machine."""
