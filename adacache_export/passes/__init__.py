"""Rewrites of traced graphs, one a file, each declared with what it needs and what it leaves."""
