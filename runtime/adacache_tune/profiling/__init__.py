"""``adacache-profile``: what each engine and a whole generation cost, and whether two back ends agree."""
