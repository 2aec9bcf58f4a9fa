"""Data sets: their shapes, checks, loading, corruptions, and the subsets and batches that runs train on."""
