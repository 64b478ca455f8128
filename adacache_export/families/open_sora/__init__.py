"""The family of Open-Sora 1.2."""
