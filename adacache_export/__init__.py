"""The offline half, which needs torch: a checkpoint of a video diffusion transformer becomes a bundle."""
