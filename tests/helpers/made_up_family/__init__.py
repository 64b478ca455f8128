"""A family of models that the package does not know, on a transformer that it does."""
