"""A bundle as a model of Triton's Python backend."""
