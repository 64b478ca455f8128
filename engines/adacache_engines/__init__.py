"""Bundles, device buffers and engines: everything that runs a stage, on numpy; backends are imported when used."""
