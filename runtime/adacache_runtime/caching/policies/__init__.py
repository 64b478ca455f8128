"""Caching policies, one a file."""
