"""Everything that knows the command line."""
