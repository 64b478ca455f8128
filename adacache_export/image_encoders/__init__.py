"""Image encoders as stages: states of an image for models that attend to them."""
