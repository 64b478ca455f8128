"""Estimates of the memory that a generation takes, and advice where it does not fit."""
