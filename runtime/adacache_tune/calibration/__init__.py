"""Calibration: set a policy's parameters for a model, from a few fully computed generations."""
