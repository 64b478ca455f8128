"""Latte-1."""
