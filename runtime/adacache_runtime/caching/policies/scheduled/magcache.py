"""MagCache (arXiv 2506.09045): reuses while the magnitude of the residual is known to change little.

How residuals' magnitudes fall from call to call hardly depends on the content, so their ratios are measured once for
a model (``adacache-calibrate``), and the schedule follows from them.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from adacache_runtime.caching.policies.scheduled.schedule import Schedule, Scheduled, uniform
from adacache_runtime.caching.policy import Decision, Needs, Run, compact

CONDITIONAL = "conditional"
BRANCHES = 2  # branches of guidance, which the authors' code evaluates one after the other, the conditional one first


class MagCache(Scheduled):
    """Reuse until the known change of the residual's magnitude adds up to a threshold.

    While calls reuse, s is the product of their ratios, and the error is the sum of |1 - s|. A call is computed where
    the error would pass the threshold, or the number of reuses in a row its limit; both then start anew. A model with
    two experts has one list of ratios for the whole generation; product and error start anew with each expert, where
    the authors' code takes them over from the first one.

    Attributes:
        ratios: for each call, mean |r_k| over mean |r_(k-1)| of the stack's residual r; 1 for the first call, which has
            none before it. For another number of calls they are interpolated.
        unconditional: the same of the unconditional branch, where each branch decides for itself; empty = ``ratios``
            are those of all branches, which decide alike.
        interpolation: whether ratios for another number of calls are on the ``line`` between two, or the ``nearest``.
        threshold: largest error.
        max_reuses: largest number of reuses in a row.
        warm_up: share of an expert's calls, from its first one on, that are always computed.
        later_warm_up: the same share for experts after the first one; None = ``warm_up``.
        later_more: number of a single branch's calls that experts after the first one compute beyond that share, where
            branches decide for themselves.
    """

    name: Literal["magcache"] = "magcache"
    ratios: tuple[float, ...] = Field(min_length=2)
    unconditional: tuple[float, ...] = ()
    interpolation: Literal["line", "nearest"] = "line"
    threshold: float = Field(0.12, ge=0)
    max_reuses: int = Field(3, ge=0)
    warm_up: float = Field(0.2, ge=0, le=1)
    later_warm_up: float | None = Field(None, ge=0, le=1)
    later_more: int = Field(0, ge=0)

    @field_validator("ratios", "unconditional")
    @classmethod
    def _positive(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        if ratios and min(ratios) <= 0:
            raise ValueError("ratios of magnitudes are more than 0")
        if len(ratios) == 1:
            raise ValueError("ratios are those of at least 2 calls")
        return ratios

    @property
    def needs(self) -> Needs:
        return Needs(by_branch=bool(self.unconditional))

    def start(self, run: Run) -> Schedule:
        if not self.unconditional:
            return uniform(self._computed(self.ratios, run), run)
        rows = [
            self._computed(self.ratios, run, 0) if branch == CONDITIONAL else self._computed(self.unconditional, run, 1)
            for branch in run.branches
        ]
        return tuple(
            Decision(compact(tuple((compute,) * run.groups for compute in call))) for call in zip(*rows, strict=True)
        )

    def _computed(self, ratios: Sequence[float], run: Run, place: int | None = None) -> list[bool]:
        """Return for each call of an expert whether it is computed.

        Args:
            ratios: ratios of a branch, or of all of them, for the whole generation.
            run: the expert's calls, with the number of those of other experts.
            place: place of the branch in the authors' code; None = all branches are alike.
        """
        known, total = np.array(ratios), run.before + run.calls + run.after
        if self.interpolation == "nearest":
            values = known[np.round(np.linspace(0, len(known) - 1, total)).astype(int)]
        else:
            values = np.interp(np.linspace(0, 1, total), np.linspace(0, 1, len(known)), known)
        own = values[run.before : run.before + run.calls].tolist()
        computed = []
        product, error, reuses = 1.0, 0.0, 0
        for always, ratio in zip(self._kept(run, place), own, strict=True):
            if not always:
                product *= ratio
                error += abs(1 - product)
                reuses += 1
            reuse = not always and error <= self.threshold and reuses <= self.max_reuses
            if not (always or reuse):
                product, error, reuses = 1.0, 0.0, 0
            computed.append(not reuse)
        return computed

    def _kept(self, run: Run, place: int | None) -> list[bool]:
        """Return for each call of an expert whether it is always computed; the first one is."""
        later = run.before > 0
        share = self.warm_up if self.later_warm_up is None or not later else self.later_warm_up
        if place is None:
            first = int(share * run.calls)
        else:  # the authors count the calls of single branches
            first = (int(BRANCHES * run.calls * share) + later * self.later_more - place + BRANCHES - 1) // BRANCHES
        return [call < max(1, first) for call in range(run.calls)]
