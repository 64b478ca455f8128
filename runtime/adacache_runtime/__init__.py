"""The online half: drives the denoising loop over a bundle's engines (numpy, no torch)."""
