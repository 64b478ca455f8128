"""VAEs as stages: one folder for each kind, and one registry."""
