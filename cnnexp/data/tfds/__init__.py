"""Sets of TensorFlow Datasets on disk: preparing them, and reading their descriptions and records."""
