"""The bundle: its manifest, the tensors and sizes that it speaks of, and how it is opened."""
