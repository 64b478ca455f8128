"""Samplers, one a file: the timesteps, and the coefficients of the linear update after each call."""
