"""Comparison, calibration and profiling of bundles: offline work that needs no torch."""
