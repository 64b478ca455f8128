"""The denoising loop and what it binds on a device."""
