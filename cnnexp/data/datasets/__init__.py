"""The data sets, one module each; importing this package registers all synthetic tasks."""

from cnnexp.data.datasets import digits, mnist1d, synthetic

__all__ = ["digits", "mnist1d", "synthetic"]
