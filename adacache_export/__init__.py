"""The offline half: turns a video DiT checkpoint into a bundle of compiled engines (needs torch)."""
