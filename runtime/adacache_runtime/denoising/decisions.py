"""Decisions of a policy, checked against what a generation has kept, and what they choose."""

from dataclasses import replace
from typing import Any

from adacache_engines.errors import PolicyError
from adacache_runtime.caching.answers import shown
from adacache_runtime.caching.policy import FIRST, Context, Decision, Policy, Run
from adacache_runtime.denoising.assembly import Assembly
from adacache_runtime.denoising.residuals import Choice


class Decisions:
    """Checks decisions, and remembers what was computed.

    Args:
        policy: the policy that decides.
        assembly: the generation's buffers and bound calls.
    """

    def __init__(self, policy: Policy[Any], assembly: Assembly) -> None:
        self._policy, self._needs = policy, policy.needs
        self._branches = assembly.stages.branches
        self._first_runs = any(measure.site == FIRST and measure.early for measure in self._needs.measures)
        self._filled: list[list[bool]] = []
        self._complete = False  # what was checked once holds: nothing that may be reused is missing
        self._difference = False
        self._choices: dict[tuple[Decision, int], Choice] = {}

    @property
    def _who(self) -> str:
        return f"policy {shown(self._policy)}"

    def begin(self, run: Run) -> None:
        """Forget what was computed: residuals of one expert are never reused by another."""
        self._filled = [[False] * run.groups for _ in range(self._branches)]
        self._complete, self._difference = not self._needs.residuals, False
        self._choices.clear()

    def checked(self, decision: Decision, context: Context, expert: int) -> Choice:
        """Return what a decision chooses for a call, and note what is kept after it.

        Raises:
            PolicyError: the decision is for other groups or branches than there are, reuses what was never computed,
                or has weights that the policy's needs do not announce.
        """
        key = (replace(decision, weights=()) if decision.weights else decision, expert)
        choice = self._choices.get(key)
        new = choice is None
        if choice is None:
            self._check_shape(decision, context)
            self._check_rebuilt(decision, context)
            choice = Choice(decision.rows(self._branches), decision.rebuilt(self._branches), expert)
            self._check_first(choice, context)
        if new or not self._complete:
            self._check_reused(decision, choice, context)
            self._note(choice)
        if decision.weights:
            self._check_weights(decision, context)
        if decision.rebuild and any(decision.rebuild) and not self._difference:
            raise PolicyError(
                f"{self._who} rebuilds a branch at call {context.call}, and no call has run both; run both "
                "branches first"
            )
        self._difference = self._difference or not any(choice.rebuilt)
        self._choices[key] = choice
        return choice

    def _note(self, choice: Choice) -> None:
        self._filled = [
            [before or now for before, now in zip(kept, row, strict=True)]
            for kept, row in zip(self._filled, choice.rows, strict=True)
        ]
        self._complete = all(map(all, self._filled)) or not self._needs.residuals

    def _check_reused(self, decision: Decision, choice: Choice, context: Context) -> None:
        for branch, row in enumerate(choice.rows):
            if choice.rebuilt[branch]:
                continue
            of_branch = f" of branch {context.run.branches[branch]}" if decision.by_branch else ""
            for group, compute in enumerate(row):
                if not compute and not (self._filled[branch][group] and self._needs.residuals):
                    raise PolicyError(
                        f"{self._who} reuses group {group}{of_branch} at call {context.call}, for which no "
                        "residual was kept; compute a group before reusing it, and have residuals in its needs"
                    )

    def _check_first(self, choice: Choice, context: Context) -> None:
        if self._first_runs and not all(row[0] for row in choice.rows):
            raise PolicyError(
                f"{self._who} reuses group 0 at call {context.call}, and measures its residual in all "
                "calls, so that it has already run; compute it"
            )

    def _check_shape(self, decision: Decision, context: Context) -> None:
        where, run = f"at call {context.call}", context.run
        rows = decision.rows(self._branches)
        if decision.by_branch and not self._needs.by_branch:
            raise PolicyError(
                f"{self._who} decides for each branch {where}, which its needs do not say; have by_branch in its needs"
            )
        if len(rows) != self._branches:
            raise PolicyError(f"{self._who} decided for {len(rows)} branches {where}, not {self._branches}")
        for row in rows:
            if len(row) != run.groups:
                raise PolicyError(f"{self._who} decided for {len(row)} groups {where}, not {run.groups}")

    def _check_weights(self, decision: Decision, context: Context) -> None:
        where, run = f"at call {context.call}", context.run
        kept = self._needs.residuals
        for weights in decision.weights_by_branch(self._branches):
            if not self._needs.weighted or [len(row) for row in weights] != [kept] * run.groups:
                raise PolicyError(
                    f"{self._who} weighs residuals {where} by {decision.weights}; its needs have weighted "
                    f"{self._needs.weighted}, and {kept} residuals for each of {run.groups} groups"
                )

    def _check_rebuilt(self, decision: Decision, context: Context) -> None:
        if not decision.rebuild:
            return
        where = f"at call {context.call}"
        count = sum(decision.rebuilt(self._branches))
        if not self._needs.rebuilds or len(decision.rebuild) != self._branches or count >= self._branches:
            raise PolicyError(
                f"{self._who} rebuilds branches {where} by {decision.rebuild}; its needs have rebuilds "
                f"{self._needs.rebuilds}, there are {self._branches} branches, and one of them must run"
            )
