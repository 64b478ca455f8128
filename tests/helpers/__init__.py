"""Fakes, fixtures and reference data that several tests share."""
