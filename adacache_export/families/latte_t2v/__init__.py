"""LatteT2V, the transformer that Latte-1 and Open-Sora-Plan 1.1 share."""
