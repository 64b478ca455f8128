"""From a prompt to the embeddings that a model takes."""
