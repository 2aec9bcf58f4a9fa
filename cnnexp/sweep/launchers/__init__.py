"""Where a sweep is trained: here, on Slurm, or on Ray."""
