"""Policies that measure nothing: all their decisions are known before the first call."""
