"""AutoencoderKL, the VAE of images of Stable Diffusion."""
