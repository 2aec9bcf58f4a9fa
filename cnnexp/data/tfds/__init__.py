"""Sets of TensorFlow Datasets, read without TensorFlow."""
