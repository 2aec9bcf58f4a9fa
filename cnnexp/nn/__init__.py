"""Layers that are one linear map on patches, tied in different ways.

`geometry`, `tying` and `counts` are plain Python, so that a sweep is planned without importing JAX.
"""
