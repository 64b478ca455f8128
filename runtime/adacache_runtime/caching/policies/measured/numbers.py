"""Arithmetic on measured numbers that policies share: ratios, and which of several counts as the worst."""

import math
from collections.abc import Sequence


def ratio(numerator: float, denominator: float, otherwise: float = math.nan) -> float:
    """Return numerator / denominator, or ``otherwise`` where the denominator is 0."""
    return numerator / denominator if denominator else otherwise


def ratios(
    numerators: Sequence[float], denominators: Sequence[float], otherwise: float = math.nan
) -> tuple[float, ...]:
    """Return the ratio of each pair, as :func:`ratio`."""
    pairs = zip(numerators, denominators, strict=True)
    return tuple(ratio(numerator, denominator, otherwise) for numerator, denominator in pairs)


def worst(values: Sequence[float]) -> float:
    """Return the largest of some values, or NaN where one of them is NaN."""
    return math.nan if any(map(math.isnan, values)) else max(values)


def nan_as_largest(value: float) -> float:
    """Return the value, or infinity for NaN, to compare values by."""
    return math.inf if math.isnan(value) else value
