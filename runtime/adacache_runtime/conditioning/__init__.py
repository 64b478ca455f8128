"""Given frames: where images and clips go in a video, and how they are kept."""
