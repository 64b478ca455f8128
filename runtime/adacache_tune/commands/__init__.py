"""The command lines of adacache-compare, adacache-calibrate and adacache-profile."""
