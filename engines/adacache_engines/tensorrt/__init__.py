"""Engines on TensorRT and TensorRT-RTX: running plans, and building them."""
