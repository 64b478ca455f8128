"""The denoising loop of one generation, and all that it binds on a device."""
