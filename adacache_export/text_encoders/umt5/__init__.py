"""The encoder of UMT5."""
