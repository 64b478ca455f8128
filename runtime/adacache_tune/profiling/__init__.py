"""Profiling: measure each engine and a whole generation, and check whether two backends agree."""
