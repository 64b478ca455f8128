"""Bundles, device buffers and engines: what runs a stage (numpy only; back ends are imported when used)."""
