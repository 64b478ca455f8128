"""The goal of a calibration, and how near a policy comes to it."""

from dataclasses import dataclass

from adacache_tune.calibration.forecast import BEST_DB

PENALTY = 10.0  # of a dB or a call by which the target is missed, in calls or dB
SLACK = 0.5  # calls over the budget, on average; with more, no quality makes up for them, not even full compute's


@dataclass(frozen=True)
class Goal:
    """A quality to keep at the least cost, or a cost to stay within at the best quality.

    Attributes:
        quality_db: mean PSNR to keep, in dB; None where a speed-up is the goal.
        speed_up: speed-up to reach over computing every call; None where a quality is the goal.
        reuse_share: ratio of the time of a reused call to that of a computed one.
    """

    quality_db: float | None = None
    speed_up: float | None = None
    reuse_share: float = 0.0

    def speed(self, computed: float, calls: int) -> float:
        """Return the speed-up of generations that compute this many calls on average."""
        return calls / (computed + (calls - computed) * self.reuse_share)

    def budget(self, calls: int) -> float:
        """Return the number of computed calls that the speed-up allows."""
        assert self.speed_up is not None
        if self.reuse_share >= 1 / self.speed_up:  # reusing every call would still be too slow
            return 1.0
        return max(1.0, calls * (1 / self.speed_up - self.reuse_share) / (1 - self.reuse_share))

    def score(self, computed: float, quality_db: float, calls: int) -> float:
        """Return how far a policy is from the goal; smaller is better."""
        if self.quality_db is not None:
            return computed + PENALTY * max(0.0, self.quality_db - quality_db) - 1e-3 * quality_db
        over = computed - self.budget(calls)
        missed = over > min(SLACK, (calls - self.budget(calls)) / 2)
        return -quality_db + PENALTY * max(0.0, over) + (2 * BEST_DB if missed else 0.0)

    def text(self) -> str:
        return f"PSNR {self.quality_db:g} dB" if self.quality_db is not None else f"speed-up {self.speed_up:g}"
