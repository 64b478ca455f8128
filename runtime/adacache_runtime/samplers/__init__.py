"""Samplers: timesteps, and the coefficients of a linear update for each call."""
