"""Computation of the maps of a layer; only `cnnexp.nn` imports this package."""
