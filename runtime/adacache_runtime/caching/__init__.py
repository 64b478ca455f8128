"""Caching: the contract of policies, the signals that they measure, and the policies themselves."""
