"""Search each method's parameters on records alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from adacache_engines.bundle.manifest import Preset
from adacache_runtime.caching.policies.measured.adacache import AdaCache, MoReg
from adacache_runtime.caching.policies.measured.teacache import TeaCache
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.scheduled.listed import ListedCalls
from adacache_runtime.caching.policies.scheduled.magcache import MagCache
from adacache_runtime.caching.policies.wrappers import Extrapolate
from adacache_runtime.caching.policy import BLOCK_INPUT, DEFAULT, VELOCITY, Policy
from adacache_runtime.caching.presets import FAST_30, FAST_100, SLOW_30, policy_from
from adacache_runtime.caching.signals.signal import at_stride
from adacache_tune.calibration.forecast import Forecaster
from adacache_tune.calibration.goal import Goal
from adacache_tune.calibration.records import RESIDUAL, Floats, Record, ratios
from adacache_tune.calibration.shortest import paths, refined

Codebook = tuple[tuple[float, int], ...]
Polynomial = tuple[float, ...]  # the highest power first

EXTRAPOLATED = "-extrapolated"
BASELINE = "interval"  # the method that any other should do better than
SCALES = tuple(10 ** (exponent / 20) for exponent in range(-24, 21))  # of published thresholds
PUBLISHED: tuple[Codebook, ...] = (FAST_30, SLOW_30, FAST_100)
STARTS: tuple[Codebook, ...] = (*PUBLISHED, ((0.1, 4), (0.2, 3), (0.3, 2), (1.0, 1)))
HIGHEST_RATE = 14
STARTING_PATHS = 16  # schedules that are refined
DEGREES = (1, 2, 3, 4)  # of TeaCache's polynomial: the paper's, and those that swing less between few points
OUTPUTS = (RESIDUAL, VELOCITY)  # whose change it may estimate


@dataclass(frozen=True)
class Found:
    """A policy that a search found, and the forecast for it.

    Attributes:
        method: name of the method that was searched.
        policy: the policy with its parameters set.
        computed: mean number of computed calls.
        quality_db: forecast of the quality in dB.
        score: distance from the goal; smaller is better.
    """

    method: str
    policy: Policy[Any]
    computed: float
    quality_db: float
    score: float


@dataclass(frozen=True)
class Search:
    """Everything that a method searches with.

    Attributes:
        forecaster: forecasts from the records.
        goal: the goal to reach.
        tries: number of random changes.
        extrapolated: whether residuals are continued along a line.
        polynomials: coefficients that TeaCache publishes for models of the family.
    """

    forecaster: Forecaster
    goal: Goal
    tries: int
    extrapolated: bool
    polynomials: Sequence[Polynomial] = ()

    def score(self, policy: Policy[Any]) -> float:
        computed, quality_db = self.forecaster.of(self.wrapped(policy))
        return self.goal.score(computed, quality_db, self.forecaster.calls)

    def wrapped(self, policy: Policy[Any]) -> Policy[Any]:
        return Extrapolate(policy=policy) if self.extrapolated else policy

    def best(self, policies: Iterable[Policy[Any]]) -> Any:
        return min(policies, key=self.score)


def adacache_scaled(search: Search) -> Any:
    """Return a published codebook with all thresholds scaled, as one would do by hand."""
    return search.best(AdaCache(codebook=_scaled(codebook, scale)) for codebook, scale in product(PUBLISHED, SCALES))


def adacache(search: Search) -> Any:
    """Search thresholds and rates: scale a codebook, then change it at random while that helps."""
    candidates = (AdaCache(codebook=_scaled(codebook, scale)) for codebook, scale in product(STARTS, SCALES))
    return _climbed(search, search.best(candidates), _other_codebook)


def adacache_moreg(search: Search) -> Any:
    """Search a codebook together with h0, exponent, gradient and window of motion regularisation."""
    calls = search.forecaster.calls
    motion = _median_motion(search.forecaster)
    start = adacache(search)
    windows = ((4, calls - 4), (max(2, calls // 10), calls - calls // 10), (1, calls))
    regularised = (
        start.model_copy(
            update={
                "codebook": _scaled(start.codebook, scale),
                "moreg": MoReg(window=window, h0=_h0(motion * size), exponent=exponent, gradient=gradient),
            }
        )
        for scale in (0.5, 0.7, 1.0)
        for window in windows
        if window[0] <= window[1]
        for size in (0.5, 0.7, 1.0, 1.4, 2.0)
        for exponent, gradient in ((0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (2.0, 1.0))
    )
    return _climbed(search, search.best(regularised), _other_moreg)


def teacache(search: Search) -> Any:
    """Search polynomial and threshold: fit or take a published polynomial, then change both at random while that helps.

    The fit is by least squares, from the change of the modulated input to that of the output.
    """
    records = search.forecaster.records
    given = np.concatenate([_relative(record, record.roles[BLOCK_INPUT][0]) for record in records])
    changes = {site: np.concatenate([_relative(record, site) for record in records]) for site in OUTPUTS}
    degrees = [degree for degree in DEGREES if degree < len(set(given.tolist()))]  # others have no one solution
    fits = [tuple(np.polyfit(given, changes[site], degree).tolist()) for site in OUTPUTS for degree in degrees or [0]]
    thresholds = [10 ** (exponent / 25) for exponent in range(-60, 26)]
    candidates = (
        TeaCache(coefficients=coefficients, threshold=round(threshold, 5))
        for coefficients, threshold in product((*search.polynomials, *fits), thresholds)
    )
    places = np.unique(np.quantile(given, np.linspace(0, 1, max(DEGREES) + 1)))
    return _climbed(search, search.best(candidates), partial(_other_polynomial, places))


def magcache(search: Search) -> Any:
    """Measure the ratios; search threshold, reuses in a row and warm-up."""
    measured = ratios(search.forecaster.records)
    candidates = (
        MagCache(ratios=measured, threshold=round(threshold, 5), max_reuses=reuses, warm_up=warm_up)
        for threshold in [10 ** (exponent / 10) for exponent in range(-25, 4)]
        for reuses in (1, 2, 3, 4, 6)
        for warm_up in (0.05, 0.1, 0.2, 0.3)
    )
    return search.best(candidates)


def listed(search: Search) -> ListedCalls:
    """Refine the shortest path for each number of computed calls, and even steps."""
    forecaster, calls = search.forecaster, search.forecaster.calls

    def score(schedule: tuple[int, ...]) -> float:
        quality_db = forecaster.quality_db([schedule] * len(forecaster.records), search.extrapolated)
        return search.goal.score(len(schedule), quality_db, calls)

    firsts = forecaster.records[0].firsts
    starts = [*paths(forecaster).values(), *(_even(calls, count, firsts) for count in range(2, calls + 1))]
    promising = sorted(starts, key=score)[:STARTING_PATHS]
    best = min((refined(schedule, calls, score, firsts) for schedule in promising), key=score)
    return ListedCalls(computed=best, calls=calls)


def interval(search: Search) -> Any:
    """Search how often calls are computed."""
    return search.best(FixedInterval(every=every) for every in range(1, 13))


METHODS: Mapping[str, Callable[[Search], Policy[Any]]] = {
    "adacache": adacache,
    "adacache-scaled": adacache_scaled,
    "adacache-moreg": adacache_moreg,
    "teacache": teacache,
    "magcache": magcache,
    "listed": listed,
    BASELINE: interval,
}
CONTAINS: Mapping[str, Sequence[str]] = {
    "adacache": ("adacache-scaled",),
    "adacache-moreg": ("adacache", "adacache-scaled"),
}
NEEDS: Mapping[str, str] = {"teacache": BLOCK_INPUT}  # role of a probe that not every bundle has
MOTION = "adacache-moreg"  # needs more than one frame


def find(method: str, forecaster: Forecaster, goal: Goal, tries: int, polynomials: Sequence[Polynomial] = ()) -> Found:
    """Return the best parameters of a method, such as ``teacache`` or ``listed-extrapolated``, for a goal."""
    extrapolated = method.endswith(EXTRAPOLATED)
    search = Search(forecaster, goal, tries, extrapolated, polynomials)
    policy = search.wrapped(METHODS[method.removesuffix(EXTRAPOLATED)](search))
    computed, quality_db = forecaster.of(policy)
    return Found(method, policy, computed, quality_db, goal.score(computed, quality_db, forecaster.calls))


def polynomials(presets: Mapping[str, Preset]) -> list[Polynomial]:
    """Return TeaCache's polynomials that come with the family, not those of earlier calibrations."""
    published = (policy_from(name, presets) for name, preset in presets.items() if not preset.measured)
    return list(dict.fromkeys(policy.coefficients for policy in published if isinstance(policy, TeaCache)))


def _even(calls: int, count: int, firsts: Sequence[int]) -> tuple[int, ...]:
    """Return the first and the last call, others at even steps between them, and the first call of each expert."""
    return tuple(sorted({*np.linspace(1, calls, count).round().astype(int).tolist(), *firsts}))


def _scaled(codebook: Codebook, scale: float) -> Codebook:
    return tuple((round(threshold * scale, 5), rate) for threshold, rate in codebook)


def _climbed(search: Search, start: Any, change: Callable[[Any, np.random.Generator, int], Any]) -> Any:
    """Keep each random change that makes the score smaller; the same records give the same result."""
    rng = np.random.default_rng(0)
    best, least = start, search.score(start)
    for _ in range(search.tries):
        other = change(best, rng, search.forecaster.calls)
        if other is None:
            continue
        score = search.score(other)
        if score < least:
            best, least = other, score
    return best


def _other_codebook(policy: AdaCache, rng: np.random.Generator, calls: int) -> AdaCache | None:  # noqa: ARG001
    """Return a codebook with all thresholds, one threshold or one rate changed; rates fall where thresholds rise."""
    thresholds, rates = (list(column) for column in zip(*policy.codebook, strict=True))
    kind, place = rng.integers(3), int(rng.integers(len(rates)))
    if kind == 0:
        scale = float(np.exp(rng.normal(0, 0.15)))
        thresholds = [threshold * scale for threshold in thresholds]
    elif kind == 1:
        thresholds[place] *= float(np.exp(rng.normal(0, 0.25)))
    else:
        rates[place] += int(rng.choice((-1, 1)))
    rounded = [round(threshold, 5) for threshold in thresholds]
    if sorted(rounded) != rounded or sorted(rates, reverse=True) != rates or not 1 <= rates[-1] <= rates[0]:
        return None
    if rates[0] > HIGHEST_RATE:
        return None
    return policy.model_copy(update={"codebook": tuple(zip(rounded, rates, strict=True))})


def _other_polynomial(places: Floats, policy: TeaCache, rng: np.random.Generator, calls: int) -> TeaCache:  # noqa: ARG001
    """Return a policy with another threshold, or with another polynomial.

    That polynomial goes through the values of the old one at these changes, but for one of them.
    """
    scale = float(np.exp(rng.normal(0, 0.2)))
    place = int(rng.integers(2 * len(places)))
    if place >= len(places):
        return policy.model_copy(update={"threshold": max(round(policy.threshold * scale, 5), 1e-5)})
    values = np.polyval(policy.coefficients, places)
    values[place] *= scale
    coefficients = tuple(np.polyfit(places, values, len(places) - 1).tolist())
    return policy.model_copy(update={"coefficients": coefficients})


def _other_moreg(policy: AdaCache, rng: np.random.Generator, calls: int) -> AdaCache | None:
    """Return a policy with a number of the regularisation changed, or the codebook."""
    assert policy.moreg is not None
    kind = rng.integers(4)
    if kind == 0:
        return _other_codebook(policy, rng, calls)
    moreg = policy.moreg
    if kind == 1:
        changed: dict[str, Any] = {"h0": _h0(moreg.h0 * float(np.exp(rng.normal(0, 0.2))))}
    elif kind == 2:
        changed = {"exponent": round(moreg.exponent * float(np.exp(rng.normal(0, 0.3))), 3)}
    else:
        first, last = (bound + int(rng.integers(-2, 3)) for bound in moreg.window)
        if not 1 <= first <= last <= calls:
            return None
        changed = {"window": (first, last)}
    return policy.model_copy(update={"moreg": moreg.model_copy(update=changed)})


def _h0(value: float) -> float:
    """Return a rounded number that is not 0."""
    return max(round(value, 5), 1e-5)


def _relative(record: Record, name: str) -> Floats:
    """Return a site's relative change at each call but experts' first ones; of the velocity relative to this call."""
    site, compared = record.sites[name], record.compared
    relative: Floats = site["change"][0, compared] / site.get("new_magnitude", site["magnitude"])[0, compared]
    return relative


def _median_motion(forecaster: Forecaster) -> float:
    """Return the median motion between neighbouring frames at the bundle's first default site."""
    moved, size = at_stride("motion", 1), at_stride("motion_magnitude", 1)
    sites = [(record.sites[record.roles[DEFAULT][0]], record.compared) for record in forecaster.records]
    return float(np.median([site[moved][0, compared] / site[size][0, compared] for site, compared in sites]))
