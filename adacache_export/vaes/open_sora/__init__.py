"""The two-stage video VAE of Open-Sora 1.2."""
