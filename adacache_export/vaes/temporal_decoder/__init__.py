"""AutoencoderKLTemporalDecoder, the VAE of Stable Video Diffusion."""
