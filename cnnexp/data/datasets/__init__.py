"""The data sets, one module for each kind."""
