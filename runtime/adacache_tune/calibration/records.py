"""A record: what one fully computed generation tells of every schedule.

It says how tensors change from call to call, and what reusing an old residual would have cost at each call.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.errors import InputError
from adacache_runtime.caching.policy import DEFAULT, Measure, Measurement, Needs, Policy, Run
from adacache_runtime.caching.signals.registry import SIGNALS
from adacache_runtime.caching.signals.signal import at_stride
from adacache_runtime.caching.simulate import simulate
from adacache_runtime.media.arrays import read_arrays
from adacache_runtime.media.files import writing
from adacache_runtime.trace import Trace

Floats = NDArray[np.float64]
RESIDUAL = "residual"  # site of the whole stack's residual, beside the sites that policies know
GROWING = ("change",)  # numbers that are taken to grow on with the gap, beyond the recorded gaps

Site = Mapping[str, Floats]
"""The numbers that were measured of a tensor, by name: (gaps, calls) where the number depends on an earlier tensor, the
gap being 1 to G calls, else (1, calls). Calls are counted from 1 in the second index; NaN = not known."""


@dataclass(frozen=True)
class Record:
    """The measurements of one generation.

    Attributes:
        timesteps: timestep of each call.
        sites: numbers of each site, in the order of execution; ``residual`` is that of the whole stack.
        roles: sites of each role that policies may ask for, such as ``default``.
        error: (G, calls, numbers) how far off a call's update would have put the latents, had it reused the stack's
            residual of ``gap`` calls ago, at some places of the latents; no numbers where that was not recorded.
        calls_by_expert: number of calls of each expert, one after another; empty = one transformer makes all of them.
            Calls of different experts are not compared, and there is no error of such a reuse.
    """

    timesteps: tuple[float, ...]
    sites: Mapping[str, Site]
    roles: Mapping[str, tuple[str, ...]]
    error: NDArray[np.float32]
    calls_by_expert: tuple[int, ...] = ()

    @property
    def runs(self) -> tuple[Run, ...]:
        """The run of each expert, for policies that treat all groups alike."""
        total, before, made = len(self.timesteps), 0, []
        for calls in self.calls_by_expert or (total,):
            timesteps = self.timesteps[before : before + calls]
            made.append(Run(calls, 1, 1, (), timesteps, before=before, after=total - before - calls))
            before += calls
        return tuple(made)

    @property
    def firsts(self) -> tuple[int, ...]:
        """The first call of each expert, from 1, which is always computed."""
        return tuple(run.before + 1 for run in self.runs)

    @property
    def compared(self) -> NDArray[np.bool_]:
        """Whether a call has one before it that it was compared with, (calls,)."""
        compared = np.ones(len(self.timesteps), np.bool_)
        compared[[first - 1 for first in self.firsts]] = False
        return compared

    def computed(self, policy: Policy[Any]) -> list[int]:
        """Return the calls of the generation, from 1, that a policy would compute; it begins anew with each expert.

        Raises:
            InputError: a site or a signal was not recorded.
            PolicyError: the policy cannot decide for these calls.
        """
        return [
            run.before + call
            for run in self.runs
            for call in simulate(policy, run, _OfExpert(self, run.before)).computed()
        ]

    def measures(self, needs: Needs) -> list[Measure]:
        """Return what a policy with these needs is shown, in the order of execution, with sites instead of roles.

        Raises:
            InputError: a site was not recorded.
        """
        asked = [
            replace(measure, site=site)
            for measure in needs.measures
            for site in self.roles.get(measure.site, (measure.site,))
        ]
        order = list(self.sites)
        missing = [measure.site for measure in asked if measure.site not in order]
        if missing:
            raise InputError(f"nothing was recorded at {', '.join(missing)}; recorded: {', '.join(order)}")
        return sorted(asked, key=lambda measure: order.index(measure.site))

    def measurement(self, measure: Measure, earlier: int, call: int) -> Measurement:
        """Return what a policy would have been shown, had every call been computed.

        For gaps beyond the recorded ones the change is taken to grow on with the gap.

        Raises:
            InputError: a signal or a stride was not recorded.
        """
        site, gap = self.sites[measure.site], call - earlier
        wanted = {key for name in measure.signals if name in SIGNALS for key in SIGNALS[name].keys(measure.strides)}
        missing = sorted(wanted - {*site})
        if missing:
            raise InputError(f"{', '.join(missing)} was not recorded at {measure.site}; recorded: {', '.join(site)}")

        def value(key: str, numbers: Floats) -> float:
            known = min(gap, len(numbers))
            number = float(numbers[known - 1, call - 1])
            return number * gap / known if key in GROWING else number

        return Measurement(measure.site, {key: (value(key, numbers),) for key, numbers in site.items()})

    def reuse_error(self, earlier: int, call: int) -> NDArray[np.float64]:
        """Return the entry of ``error`` for a call and the call whose residual it would reuse.

        For gaps beyond the recorded ones the error is taken to grow on with the gap.
        """
        gap = call - earlier
        known = min(gap, len(self.error))
        error: NDArray[np.float64] = self.error[known - 1, call - 1].astype(np.float64) * (gap / known)
        return error


@dataclass(frozen=True)
class _OfExpert:
    """The numbers of a record as an expert's run has them: calls are counted from that expert's first one.

    Attributes:
        record: the record of the whole generation.
        before: number of calls before the expert's first one.
    """

    record: Record
    before: int

    def measures(self, needs: Needs) -> list[Measure]:
        return self.record.measures(needs)

    def measurement(self, measure: Measure, earlier: int, call: int) -> Measurement:
        return self.record.measurement(measure, self.before + earlier, self.before + call)


def record_of(trace: Trace, site: str = DEFAULT) -> Record:
    """Return the record that a trace of ``adacache-run`` amounts to: the distances a step that its policy saw.

    Exact where every call was computed and measured, as with the policy ``{"name": "adacache", "codebook": [[1, 1]]}``;
    between measured calls the numbers are interpolated.

    Args:
        trace: trace of a run with AdaCache, or another policy that measures one site.
        site: name for the site that it measured.

    Raises:
        InputError: no call has a distance.
    """
    calls = len(trace.calls)
    distances = {record.call: record.observation.get("distance") for record in trace.calls}
    motions = {record.call: record.observation.get("motion") for record in trace.calls}
    if not any(distance is not None for distance in distances.values()):
        raise InputError(
            "no call of the trace has a distance; trace a run whose policy measures, such as adacache-slow"
        )
    change, motion = _filled(distances, calls), _filled(motions, calls)
    ones = np.ones((1, calls))
    timesteps = tuple(record.timestep for record in trace.calls)
    nothing = np.zeros((1, calls, 0), np.float32)
    moved = {at_stride("motion", 1): motion, at_stride("motion_magnitude", 1): ones}
    return Record(timesteps, {site: {"change": change, "magnitude": ones, **moved}}, {DEFAULT: (site,)}, nothing)


def _filled(values: Mapping[int, float | None], calls: int) -> Floats:
    """Return the values of all calls, (1, calls), interpolated; NaN where none is known at all."""
    known = {call: value for call, value in values.items() if value is not None}
    if not known:
        return np.full((1, calls), np.nan)
    return np.interp(np.arange(1, calls + 1), list(known), list(known.values()))[None]


def save_record(path: Path, record: Record) -> None:
    """Write a record as one ``.npz`` file, whole or not at all."""
    arrays: dict[str, NDArray[np.generic]] = {
        "timesteps": np.array(record.timesteps),
        "calls_by_expert": np.array(record.calls_by_expert, np.int64),
        "error": record.error,
    }
    for role, names in record.roles.items():
        arrays[f"roles/{role}"] = np.array(names, np.str_)
    for name, site in record.sites.items():
        arrays |= {f"sites/{name}/{number}": values for number, values in site.items()}
    with writing(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_record(path: Path) -> Record:
    """Read a record that :func:`save_record` wrote.

    Raises:
        InputError: the file cannot be read, or is no record.
    """
    no_record, advice = "record of adacache-calibrate", "remove it to record anew"
    arrays = read_arrays(path, no_record, advice)
    sites: dict[str, dict[str, Floats]] = {}
    roles = {}
    try:
        for key, values in arrays.items():
            kind, _, rest = key.partition("/")
            if kind == "sites":
                name, _, number = rest.partition("/")
                sites.setdefault(name, {})[number] = values
            elif kind == "roles":
                roles[rest] = tuple(values.tolist())
        timesteps, calls = (tuple(arrays[key].tolist()) for key in ("timesteps", "calls_by_expert"))
        record = Record(timesteps, sites, roles, arrays["error"], calls)
        problem = _impossible(record)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is no {no_record} ({error}); {advice}") from error
    if problem:
        raise InputError(f"{path} is no {no_record} ({problem}); {advice}")
    return record


def _impossible(record: Record) -> str | None:
    """Return what :func:`save_record` cannot have written of a generation; None where there is nothing of the kind."""
    calls, experts = len(record.timesteps), record.calls_by_expert
    if not calls or not all(isinstance(step, float) and math.isfinite(step) for step in record.timesteps):
        return "its timesteps are no numbers"
    if experts and (not all(isinstance(each, int) and each > 0 for each in experts) or sum(experts) != calls):
        return "the calls of its experts are not all calls"
    if (
        record.error.dtype.kind != "f"
        or record.error.ndim != 3
        or record.error.shape[1] != calls
        or not len(record.error)
    ):
        return "its errors are not those of its calls"
    if "magnitude" not in record.sites.get(RESIDUAL, {}):
        return f"no magnitude was recorded at {RESIDUAL}"
    for name, site in record.sites.items():
        for number, values in site.items():
            if values.dtype.kind != "f" or values.ndim != 2 or not len(values) or values.shape[1] != calls:
                return f"{name}/{number} is not of its calls"
    if any(isinstance(site, str) and site not in record.sites for names in record.roles.values() for site in names):
        return "a role has a site that was not recorded"
    return None


def ratios(records: Sequence[Record]) -> tuple[float, ...]:
    """Return the mean magnitude of the stack's residual over that of the call before, for each call (MagCache's gamma).

    The first call of an expert has none before it, and gets 1. An expert's last magnitude was not recorded, for no
    later call was compared with it; its ratio is taken to be that of the call before.
    """
    magnitudes = [record.sites[RESIDUAL]["magnitude"][0] for record in records]  # at each call, of the one before
    found: list[float] = []
    for run in records[0].runs:
        values = [magnitude[run.before : run.before + run.calls] for magnitude in magnitudes]
        inner = np.mean([one[2:] / one[1:-1] for one in values], axis=0) if run.calls > 2 else np.ones(1)
        found += [1.0, *inner, inner[-1]][: run.calls]
    return tuple(np.round(found, 5).tolist())
