"""The bundle: its manifest, its tensors and sizes, and how it is opened."""
