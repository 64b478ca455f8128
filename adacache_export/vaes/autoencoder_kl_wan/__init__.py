"""AutoencoderKLWan, the causal video VAE of Wan 2.1 and 2.2."""
