"""The parts of a bundle that can be added or replaced later: its text encoder, its image encoder and its VAE."""
