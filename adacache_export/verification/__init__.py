"""Comparison of engines with the torch stages that they were made from."""
