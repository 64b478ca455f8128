"""Between latents and pixels: chunks, tiles, encoding and decoding."""
