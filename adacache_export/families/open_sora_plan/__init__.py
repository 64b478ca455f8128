"""The family of Open-Sora-Plan 1.1."""
