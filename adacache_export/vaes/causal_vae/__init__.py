"""The causal video VAE of Open-Sora-Plan."""
