"""Files and folders of a bundle, written whole or not at all."""
