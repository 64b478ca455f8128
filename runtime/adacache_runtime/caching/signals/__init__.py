"""Signals: small graphs that turn tensors into a few numbers for policies, one a file."""
