"""Mirrors of the store: Weights & Biases, and the progress display."""
