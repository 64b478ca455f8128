"""Policies that measure tensors, and decide by how much these change from call to call."""
