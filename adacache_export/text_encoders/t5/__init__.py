"""The encoder of T5, mT5 and T5 1.1."""
