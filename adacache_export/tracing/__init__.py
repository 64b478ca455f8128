"""Tracing of stages, and their graphs as ONNX files."""
