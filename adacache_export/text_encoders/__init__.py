"""Text encoders as stages."""
