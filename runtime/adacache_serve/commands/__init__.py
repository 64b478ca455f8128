"""The command line of adacache-serve."""
