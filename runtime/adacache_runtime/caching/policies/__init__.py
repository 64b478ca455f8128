"""Caching policies: scheduled ones, ones that measure, and wrappers around either."""
