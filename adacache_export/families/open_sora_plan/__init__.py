"""Open-Sora-Plan 1.1."""
