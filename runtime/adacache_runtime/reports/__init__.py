"""What a generation did, as tables and plots."""
