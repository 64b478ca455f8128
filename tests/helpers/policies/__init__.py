"""Policies for tests, and measurements to drive policies with."""
