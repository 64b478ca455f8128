"""Small torch models with random weights, their checkpoints, and how they are exported quickly."""
