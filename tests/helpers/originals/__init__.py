"""What original implementations gave, and their rules and layers written down a second time."""
