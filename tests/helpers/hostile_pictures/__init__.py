"""Image files as nobody makes them who wants to see an image: too large, cut off, contradictory, or another kind.

Each function yields names and contents; a name says what is wrong, for the message of a test that fails.
"""
