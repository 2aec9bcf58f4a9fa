"""Figures of accuracy, kernels, layers and images."""
