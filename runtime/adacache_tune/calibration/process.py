"""Calibrate from beginning to end: record, try a few policies, search, correct by real runs, confirm."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from adacache_engines.errors import InputError
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policy import Policy
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_runtime.settled import settle
from adacache_tune.calibration.baseline import better, intervals_around
from adacache_tune.calibration.forecast import Forecaster
from adacache_tune.calibration.goal import Goal
from adacache_tune.calibration.methods import BASELINE, CONTAINS, EXTRAPOLATED, Found, Polynomial, find
from adacache_tune.calibration.recorder import record
from adacache_tune.calibration.records import Record, load_record, save_record
from adacache_tune.calibration.trials import Advance, Trial, run_trials

PILOTS: Mapping[str, Policy[Any]] = {"interval-2": FixedInterval(every=2), "interval-3": FixedInterval(every=3)}
TRIED = 6  # prompts of real runs before the confirmation
SEARCHING = "searching"  # the phase that counts methods
ROUNDS = 3  # of search and real runs, at most
CLOSE_DB = 0.3  # between forecast and real runs: then another search would find the same
TOLERANCE_DB = 1.0  # by which a confirmed policy may miss its target
TOLERANCE_SPEED = 0.03  # likewise, as a share

PhaseProgress = Callable[[str, int], AbstractContextManager[Advance]]  # of a phase with so many steps


@dataclass(frozen=True)
class Task:
    """A calibration that was asked for.

    Attributes:
        pipeline: the opened pipeline.
        recorded, held_out: requests of one prompt each.
        goal: the goal to reach.
        methods: names of the methods.
        polynomials: coefficients that TeaCache publishes for models of the family.
        confirmed: number of methods that are run on the held-out prompts.
        gaps: largest number of calls over which a reuse is recorded; see :func:`record`.
        tries: number of random changes for each method.
        folder: folder for records and runs.
        asked: settings of each generation, as JSON.
        progress: shows the progress of each phase.
        say: called with each remark for people.
    """

    pipeline: Pipeline
    recorded: Sequence[Request]
    held_out: Sequence[Request]
    goal: Goal
    methods: Sequence[str]
    polynomials: Sequence[Polynomial]
    confirmed: int
    gaps: int
    tries: int
    folder: Path
    asked: Mapping[str, Any]
    progress: PhaseProgress
    say: Callable[[str], None]


@dataclass(frozen=True)
class Confirmed:
    """A policy that was run, and its forecast.

    Attributes:
        found: the policy, with the quality forecast for all recorded prompts after real runs corrected it.
        forecast_speed_up: speed-up that is forecast for the recorded prompts.
        trial: what was measured on some recorded prompts, and in the end on the held-out ones.
        score: distance of the trial from the goal; smaller is better.
    """

    found: Found
    forecast_speed_up: float
    trial: Trial
    score: float


@dataclass(frozen=True)
class Calibrated:
    """The result of a calibration.

    Attributes:
        policies: confirmed policies, the best first; no fixed interval is as fast as one of them and better.
        intervals: trials of fixed intervals of about these speeds on the same prompts, by label.
    """

    policies: Sequence[Confirmed]
    intervals: Mapping[str, Trial]


def calibrate(task: Task) -> Calibrated:
    """Find policies that reach the goal.

    Raises:
        InputError: no policy comes near the goal, or is as good as a fixed interval; says how near the best came.
        AdaCacheError: as :meth:`Pipeline.generate`.
    """
    forecaster = Forecaster(_records(task))
    some = task.recorded[:TRIED]
    pilots = _trials(task, "trying intervals", some, PILOTS)
    offset_db = fmean(
        trial.quality_db.mean - _forecast_on(forecaster, PILOTS[label], len(some)) for label, trial in pilots.items()
    )
    forecaster = replace(forecaster, offset_db=offset_db)
    goal = replace(task.goal, reuse_share=fmean(trial.reuse_share for trial in pilots.values()))
    useful = [one for one in _fitted(task, forecaster, goal, some) if one.trial.computed < forecaster.calls]
    if not useful:
        raise InputError(f"no method reaches {task.goal.text()} but by computing every call; ask for less")
    best = sorted(useful, key=lambda one: one.score)[: task.confirmed]
    plain = intervals_around([one.trial.computed for one in best], forecaster.records[0])
    policies = {one.found.method: one.found.policy for one in best}
    trials = _trials(task, "confirming", task.held_out, {**policies, **plain})
    intervals = {label: trials[label] for label in plain}
    confirmed = [
        replace(one, trial=trials[one.found.method], score=_score(goal, trials[one.found.method])) for one in best
    ]
    confirmed.sort(key=lambda one: (not _near(goal, one.trial), one.score))
    if not _near(goal, confirmed[0].trial):
        raise InputError(_missed(goal, confirmed[0]))
    return Calibrated(_worthwhile(task, confirmed, intervals), intervals)


@dataclass
class _Fit:
    """A method during the calibration: what it searches with, and what it has tried."""

    method: str
    forecaster: Forecaster
    goal: Goal
    tried: list[Confirmed] = field(default_factory=list)
    done: bool = False

    def search(self, task: Task) -> Found | None:
        """Return the policy to try next; None where it has been tried."""
        found = find(self.method, self.forecaster, self.goal, task.tries, task.polynomials)
        self.done = any(found.policy == one.found.policy for one in self.tried)
        return None if self.done else found

    def learn(self, found: Found, trial: Trial) -> None:
        """Correct the forecast by real runs, which were made on the first of the recorded prompts only."""
        expected = _forecast_on(self.forecaster, found.policy, trial.prompts)
        off = trial.quality_db.mean - expected
        quality_db = found.quality_db + off
        score = self.goal.score(trial.computed, quality_db, trial.calls)
        speed_up = self.goal.speed(found.computed, trial.calls)
        self.tried.append(Confirmed(replace(found, quality_db=quality_db), speed_up, trial, score))
        self.done = abs(off) < CLOSE_DB
        self.forecaster = replace(self.forecaster, offset_db=self.forecaster.offset_db + off)
        if trial.computed < trial.calls:
            self.goal = replace(self.goal, reuse_share=trial.reuse_share)


def _fitted(task: Task, forecaster: Forecaster, goal: Goal, requests: Sequence[Request]) -> list[Confirmed]:
    """Search and try each method's parameters, search again with what trials showed, and return the best of each."""
    fits = [_Fit(method, forecaster, goal) for method in task.methods]
    for number in range(1, ROUNDS + 1):
        found: dict[str, Found] = {}
        todo = [fit for fit in fits if not fit.done]
        with task.progress(f"{SEARCHING}, round {number} of {ROUNDS}", len(todo)) as advance:
            for fit in todo:
                if (one := fit.search(task)) is not None:
                    found[fit.method] = one
                advance()
        if not found:
            break
        trials = _trials(task, "trying what was found", requests, {name: one.policy for name, one in found.items()})
        for fit in todo:
            if fit.method not in found:
                continue
            one, trial = found[fit.method], trials[fit.method]
            fit.learn(one, trial)
            task.say(
                f"{fit.method}: {one.computed:.1f} of {forecaster.calls} calls and {one.quality_db:.1f} dB forecast; "
                f"{fit.tried[-1].found.quality_db:.1f} dB after {trial.prompts} real runs"
            )
    tried = {fit.method: fit.tried for fit in fits}
    return [_best(method, tried) for method in task.methods]


def _best(method: str, tried: Mapping[str, Sequence[Confirmed]]) -> Confirmed:
    """Return the best trial of a method and of simpler ones that it contains, which real runs may have favoured."""
    base = method.removesuffix(EXTRAPOLATED)
    names = [method, *(inner + method.removeprefix(base) for inner in CONTAINS.get(base, ()))]
    best = min((one for name in names for one in tried.get(name, ())), key=lambda one: one.score)
    return replace(best, found=replace(best.found, method=method))


def _worthwhile(task: Task, confirmed: Sequence[Confirmed], intervals: Mapping[str, Trial]) -> list[Confirmed]:
    """Return the policies that no fixed interval makes superfluous; say why the others are left out."""
    kept = []
    for one in confirmed:
        label = None if one.found.method == BASELINE else better(one.trial, intervals)
        if label is None:
            kept.append(one)
        else:
            task.say(f"without {one.found.method}: {_shown(one.trial)}, where {label} gives {_shown(intervals[label])}")
    if not kept:
        raise InputError(
            f"a fixed interval is faster and does better than each of {', '.join(task.methods)}; add {BASELINE} or "
            "others to --methods"
        )
    return kept


def _shown(trial: Trial) -> str:
    return f"{trial.quality_db.mean:.1f} dB at {trial.speed_up:.2f} times the speed"


def _score(goal: Goal, trial: Trial) -> float:
    return goal.score(trial.computed, trial.quality_db.mean, trial.calls)


def _near(goal: Goal, trial: Trial) -> bool:
    """Whether a policy reached the goal, as far as so few prompts and a clock can tell."""
    if goal.quality_db is not None:
        return trial.quality_db.mean >= goal.quality_db - TOLERANCE_DB
    assert goal.speed_up is not None
    return trial.speed_up >= goal.speed_up * (1 - TOLERANCE_SPEED)


def _missed(goal: Goal, best: Confirmed) -> str:
    trial = best.trial
    return (
        f"no policy kept {goal.text()} on the held-out prompts: the best, {best.found.method}, gave "
        f"{_shown(trial)}; ask for less, or give more prompts"
    )


def _records(task: Task) -> list[Record]:
    calls = len(settle(task.pipeline.bundle, task.recorded[0]).updates)
    paths = [task.folder / f"record-{index:03}.npz" for index in range(len(task.recorded))]
    todo = [index for index, path in enumerate(paths) if not path.exists()]
    with task.progress("recording full compute", calls * len(todo)) as advance:
        for index in todo:
            made, _ = record(task.pipeline, task.recorded[index], task.gaps, on_call=lambda _: advance())
            save_record(paths[index], made)
    records = [load_record(path) for path in paths]
    for path, one in zip(paths, records, strict=True):
        if len(one.timesteps) != calls or _measured(one) != _measured(records[0]):
            raise InputError(
                f"{path} is of another calibration: it has {len(one.timesteps)} calls where this one has {calls}, or "
                f"other measurements than {paths[0].name}; give --force to begin anew"
            )
    return records


def _measured(one: Record) -> object:
    """Return what a record has measured, without the numbers."""
    sites = {name: {number: values.shape for number, values in site.items()} for name, site in one.sites.items()}
    return sites, one.roles, one.error.shape, one.calls_by_expert


def _trials(
    task: Task, what: str, requests: Sequence[Request], policies: Mapping[str, Policy[Any]]
) -> dict[str, Trial]:
    return run_trials(task.pipeline, requests, policies, task.folder, task.asked, partial(task.progress, what))


def _forecast_on(forecaster: Forecaster, policy: Policy[Any], count: int) -> float:
    """Return the quality that is forecast for the first records only."""
    _, quality_db = Forecaster(forecaster.records[:count], forecaster.offset_db).of(policy)
    return quality_db
