"""The format of a bundle: its manifest, its tensors and its sizes, and the functions that open it."""
