"""The command line of ``adacache-export``: one file for each job, and all that knows argparse."""
