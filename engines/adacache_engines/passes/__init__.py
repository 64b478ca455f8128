"""Rewrites of ONNX graphs for a backend, one a file, each declared with what it needs and what it leaves."""
