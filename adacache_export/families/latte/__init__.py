"""The family of Latte-1."""
