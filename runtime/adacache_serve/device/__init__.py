"""Workers: processes that each own a device and make several videos in turn, and their supervision."""
