"""Engines on ONNX Runtime, and the graph passes that suit its processors."""
