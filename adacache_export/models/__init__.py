"""The transformers, as torch modules written for export; a family describes which one it uses, and how."""
