"""Comparison: measure what policies save and what they cost in quality, against full compute with the same noise."""
