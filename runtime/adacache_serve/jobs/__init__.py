"""The jobs of a server: their life, the database and the results that keep them, and what operators see of them."""
