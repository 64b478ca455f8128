"""What a bundle holds and computes, as tables for people."""
