"""The vision model of CLIP."""
