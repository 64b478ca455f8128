"""The command line of adacache-export."""
