"""The results of a calibration: presets in the bundle, a report in its folder, and a table for people."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from adacache_engines.bundle.files import read_manifest, replace_manifest
from adacache_engines.bundle.locks import changing
from adacache_engines.bundle.manifest import Preset
from adacache_runtime.media.files import writing
from adacache_tune.calibration.process import Calibrated, Confirmed, Task
from adacache_tune.calibration.trials import Trial
from adacache_tune.identity import description


def presets(name: str, task: Task, confirmed: Sequence[Confirmed]) -> dict[str, Preset]:
    """Return the presets: the best policy under the name itself, and each confirmed method under its own."""
    found: dict[str, Preset] = {}
    for one in confirmed:
        preset = _preset(task, one)
        found.setdefault(name, preset)
        found[f"{name}-{one.found.method}"] = preset
    return found


def write_presets(bundle: Path, found: dict[str, Preset], say: Callable[[str], None] = lambda _: None) -> None:
    """Put presets into the bundle's manifest, beside those of other names.

    Args:
        bundle: folder of the bundle.
        found: the presets by name.
        say: function that gets a sentence where another process changes the bundle and this one waits.

    Raises:
        BundleError: the manifest cannot be read or written; it stays as it was.
    """
    with changing(bundle, say):
        manifest = read_manifest(bundle)
        replace_manifest(bundle, manifest.model_copy(update={"policies": {**manifest.policies, **found}}))


def write_report(path: Path, task: Task, calibrated: Calibrated) -> None:
    """Write forecast and measured numbers of each confirmed method, the best first, and of fixed intervals, as JSON.

    Raises:
        InputError: the file cannot be written.
    """
    content = {
        "goal": task.goal.text(),
        "recorded_prompts": len(task.recorded),
        "methods": [
            {
                "method": one.found.method,
                "policy": description(one.found.policy),
                "forecast": {
                    "computed_calls": one.found.computed,
                    "quality_db": one.found.quality_db,
                    "speed_up": one.forecast_speed_up,
                },
                "measured": asdict(one.trial),
            }
            for one in calibrated.policies
        ],
        "fixed_intervals": {label: asdict(trial) for label, trial in calibrated.intervals.items()},
    }
    with writing(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def table(calibrated: Calibrated) -> Table:
    """Return the table: forecast beside measured, the best first, then fixed intervals."""
    made = Table("method", "calls, forecast", "measured", "dB, forecast", "measured", "speed, forecast", "measured")
    for column in made.columns[1:]:
        column.justify = "right"
    for one in calibrated.policies:
        calls, quality_db, speed_up = _shown(one.trial)
        forecasts = f"{one.found.computed:.1f}", f"{one.found.quality_db:.1f}", f"{one.forecast_speed_up:.2f}"
        made.add_row(one.found.method, forecasts[0], calls, forecasts[1], quality_db, forecasts[2], speed_up)
    made.add_section()
    for label, trial in calibrated.intervals.items():
        calls, quality_db, speed_up = _shown(trial)
        made.add_row(f"for comparison: {label}", "", calls, "", quality_db, "", speed_up)
    return made


def _shown(trial: Trial) -> tuple[str, str, str]:
    """Return the cells for computed calls, quality and speed."""
    margin = trial.quality_db.margin
    quality_db = f"{trial.quality_db.mean:.1f}" + (f" ± {margin:.1f}" if margin is not None else "")
    return f"{trial.computed:.1f}", quality_db, f"{trial.speed_up:.2f}"


def _preset(task: Task, one: Confirmed) -> Preset:
    trial, decodes = one.trial, task.pipeline.bundle.manifest.latent.decoder != "none"
    note = (
        f"{one.found.method}, calibrated for {task.goal.text()} on {len(task.recorded)} prompts; on {trial.prompts} "
        f"others {trial.quality_db.mean:.1f} dB at {trial.speed_up:.2f} times the speed of full compute, "
        f"{trial.computed:.1f} of {trial.calls} calls computed ({task.pipeline.backend.name})"
    )
    measured = {
        "psnr_db" if decodes else "latents_db": round(trial.quality_db.mean, 3),
        "speed_up": round(trial.speed_up, 3),
        "computed_calls": round(trial.computed, 3),
        "calls": trial.calls,
        "prompts": trial.prompts,
    }
    finite = {name: value for name, value in measured.items() if math.isfinite(value)}  # equal videos: infinite dB
    return Preset(policy=description(one.found.policy), note=note, measured=finite)
