"""The fake model: bundles of a few numpy lines, their variants, and the plain loop that they are compared with."""
