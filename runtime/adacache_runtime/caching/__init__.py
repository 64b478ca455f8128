"""Caching: the contract of policies, what they measure, and the policies themselves."""
