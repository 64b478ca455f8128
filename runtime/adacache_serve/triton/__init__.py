"""A bundle as a model of Triton Inference Server."""
