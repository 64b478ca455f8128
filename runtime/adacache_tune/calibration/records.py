"""What one fully computed generation tells of every schedule: by how much things change from call to call, and what
reusing an old residual would have cost at each call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adacache_engines.errors import InputError
from adacache_runtime.caching.policy import DEFAULT, Measure, Measurement, Needs, Run
from adacache_runtime.media.files import writing
from adacache_runtime.trace import Trace

Floats = NDArray[np.float64]
RESIDUAL = "residual"  # of the whole stack, beside the sites that policies know


@dataclass(frozen=True)
class Site:
    """What a tensor did; the first index is the gap in calls, 1 to G, or the place of a stride, the second the call,
    from 1. NaN = not known.

    Attributes:
        change: (G, calls) sum |earlier - new|.
        magnitude: (G, calls) sum |earlier|, of ``velocity`` sum |new|.
        frame_change, frame_magnitude: (strides, calls) sums over pairs of frames.
    """

    change: Floats
    magnitude: Floats
    frame_change: Floats
    frame_magnitude: Floats


@dataclass(frozen=True)
class Record:
    """One generation.

    Attributes:
        timesteps: of all calls.
        sites: by name, in the order of execution; ``residual`` is that of the whole stack.
        strides: distances in frames at which motion was measured.
        default: the bundle's default sites, in order.
        error: (G, calls, numbers) how far off a call's update would have put the latents, had it reused the stack's
            residual of ``gap`` calls ago, at some places of the latents; no numbers where that was not recorded.
    """

    timesteps: tuple[float, ...]
    sites: Mapping[str, Site]
    strides: tuple[int, ...]
    default: tuple[str, ...]
    error: NDArray[np.float32]

    @property
    def run(self) -> Run:
        """For policies that treat all groups alike."""
        return Run(len(self.timesteps), 1, 1, (), self.timesteps)

    def measures(self, needs: Needs) -> list[Measure]:
        """What a policy with these needs is shown, in the order of execution.

        Raises:
            InputError: a site was not recorded.
        """
        asked = [
            replace(measure, site=site)
            for measure in needs.measures
            for site in (self.default if measure.site == DEFAULT else (measure.site,))
        ]
        order = list(self.sites)
        missing = [measure.site for measure in asked if measure.site not in order]
        if missing:
            raise InputError(f"nothing was recorded at {', '.join(missing)}; recorded: {', '.join(order)}")
        return sorted(asked, key=lambda measure: order.index(measure.site))

    def measurement(self, measure: Measure, earlier: int, call: int) -> Measurement:
        """What a policy would have been shown, on the path of full compute; for gaps beyond the recorded ones the
        change grows on with the gap.

        Raises:
            InputError: a stride was not recorded.
        """
        site = self.sites[measure.site]
        missing = [stride for stride in measure.strides if stride not in self.strides]
        if missing:
            raise InputError(f"motion was recorded at strides {self.strides}, not at {missing}")
        gap = call - earlier
        known = min(gap, len(site.change))
        places = [self.strides.index(stride) for stride in measure.strides]
        return Measurement(
            measure.site,
            (float(site.change[known - 1, call - 1]) * gap / known,),
            (float(site.magnitude[known - 1, call - 1]),),
            tuple((float(site.frame_change[place, call - 1]),) for place in places),
            tuple((float(site.frame_magnitude[place, call - 1]),) for place in places),
        )

    def reuse_error(self, earlier: int, call: int) -> NDArray[np.float64]:
        """Of ``error``, for any gap: beyond the recorded ones it grows on with the gap."""
        gap = call - earlier
        known = min(gap, len(self.error))
        error: NDArray[np.float64] = self.error[known - 1, call - 1].astype(np.float64) * (gap / known)
        return error


def record_of(trace: Trace, site: str = DEFAULT) -> Record:
    """What a trace of ``adacache-run`` tells: the distances a step that its policy saw.

    Exact where every call was computed and measured, as with the policy ``{"name": "adacache", "codebook": [[1, 1]]}``;
    between measured calls the numbers are interpolated.

    Args:
        trace: of a run with AdaCache, or another policy that measures one site.
        site: that it measured.

    Raises:
        InputError: no call has a distance.
    """
    calls = len(trace.calls)
    distances = {record.call: record.observation.distance for record in trace.calls}
    motions = {record.call: record.observation.motion for record in trace.calls}
    if not any(distance is not None for distance in distances.values()):
        raise InputError(
            "no call of the trace has a distance; trace a run whose policy measures, such as adacache-slow"
        )
    change, motion = _filled(distances, calls), _filled(motions, calls)
    ones = np.ones((1, calls))
    timesteps = tuple(record.timestep for record in trace.calls)
    nothing = np.zeros((1, calls, 0), np.float32)
    return Record(timesteps, {site: Site(change, ones, motion, ones)}, (1,), (site,), nothing)


def _filled(values: Mapping[int, float | None], calls: int) -> Floats:
    """(1, calls), NaN where nothing is known at all."""
    known = {call: value for call, value in values.items() if value is not None}
    if not known:
        return np.full((1, calls), np.nan)
    return np.interp(np.arange(1, calls + 1), list(known), list(known.values()))[None]


def save_record(path: Path, record: Record) -> None:
    """Writes one ``.npz`` file, whole or not at all."""
    arrays: dict[str, NDArray[np.generic]] = {
        "timesteps": np.array(record.timesteps),
        "strides": np.array(record.strides, np.int64),
        "default": np.array(record.default, np.str_),
        "error": record.error,
    }
    for name, site in record.sites.items():
        arrays |= {f"{name}/{part}": values for part, values in vars(site).items()}
    with writing(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_record(path: Path) -> Record:
    """
    Raises:
        InputError: the file cannot be read, or is no record.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = dict(file.items())
        names = dict.fromkeys(key.partition("/")[0] for key in arrays if "/" in key)
        parts = ("change", "magnitude", "frame_change", "frame_magnitude")
        return Record(
            tuple(arrays["timesteps"].tolist()),
            {name: Site(*(arrays[f"{name}/{part}"] for part in parts)) for name in names},
            tuple(arrays["strides"].tolist()),
            tuple(arrays["default"].tolist()),
            arrays["error"],
        )
    except OSError as error:
        raise InputError(f"record {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
        raise InputError(f"{path} is no record of adacache-calibrate ({error}); remove it to record anew") from error


def ratios(records: Sequence[Record]) -> tuple[float, ...]:
    """Mean magnitude of the stack's residual over that of the call before, a call each (MagCache's gamma).

    The first call has none before it, and gets 1. The last call's magnitude was not recorded, for no later call was
    compared with it; its ratio is taken to be that of the call before. There are at least three calls.
    """
    magnitudes = [record.sites[RESIDUAL].magnitude[0] for record in records]  # at each call, of the one before
    inner = np.mean([values[2:] / values[1:-1] for values in magnitudes], axis=0)
    return tuple(np.concatenate([[1.0], inner, inner[-1:]]).round(5).tolist())
