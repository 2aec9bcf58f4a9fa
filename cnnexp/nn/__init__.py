"""Layers that are one linear map on patches, tied in different ways.

`geometry` and `tying` are plain Python, so that a sweep is planned without importing JAX.
"""
