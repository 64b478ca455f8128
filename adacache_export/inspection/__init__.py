"""Tables, for people, of a bundle's content and of the work that it does."""
