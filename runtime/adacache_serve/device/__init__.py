"""A process that owns a device and makes videos in turn, and who watches over it."""
