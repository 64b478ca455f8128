"""Reports on a generation's trace: tables, plots and counts of operations."""
