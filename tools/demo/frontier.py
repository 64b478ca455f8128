"""Make the README's plot of quality against speed: every policy on the demo model, and policies calibrated for it.

    python -m tools.demo.frontier [--out FOLDER] [--results FOLDER]

It runs the project's own commands: an export with all probes and single modules, a calibration for each of a few
targets, and a comparison on prompts that no calibration has seen. Measured numbers stay in the folder, so that a run
that was stopped goes on where it was.
"""

import argparse
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from adacache_engines.bundle.files import read_manifest
from adacache_engines.bundle.manifest import Preset
from adacache_runtime.caching.policy import BLOCK_INPUT
from adacache_tune.commands.calibrate import main as calibrate
from adacache_tune.commands.compare import main as compare
from adacache_tune.comparison.statistics import Estimate
from adacache_tune.comparison.summary import Total
from tools.demo import world
from tools.demo.frontier_plot import Point, plot
from tools.demo.run import command

HERE = Path(__file__).parent
RECORDS = "calibration"  # of all targets
TARGETS = (30, 35, 40)  # dB
RECORDED, HELD_OUT = 30, 24  # prompts of the world's 60
SEED = 11
NOISE = 5000  # seed of the comparison; calibrations have others
PUBLISHED: Mapping[str, Sequence[str]] = {
    "fixed interval": ("interval-2", "interval-3", "interval-4", "interval-5"),
    "AdaCache": ("adacache-slow", "adacache-fast"),
    "TeaCache": ("teacache-slow", "teacache-fast"),
    "FBCache": ("fbcache-slow", "fbcache-fast"),
    "EasyCache": ("easycache-fast", "easycache-slow"),
    "PAB": ("pab1", "pab2", "pab3"),
    "T-GATE": ("tgate",),
    "Delta-DiT": ("delta-dit",),
}
CALIBRATED: Mapping[str, str] = {
    "adacache-scaled": "AdaCache, published codebook scaled",
    "adacache": "AdaCache, calibrated",
    "teacache": "TeaCache, calibrated",
    "magcache": "MagCache, calibrated",
    "listed": "listed calls, calibrated",
    "adacache-extrapolated": "AdaCache, calibrated, extrapolated",
    "listed-extrapolated": "listed calls, calibrated, extrapolated",
}
HEAD = f"""# The demo model's frontier

Made by `python -m tools.demo.frontier --results tools/results`: every policy beside full compute with the same noise,
call by call in turn, on {HELD_OUT} prompts that no calibration has seen; 95 % confidence over prompts. `cN-METHOD` was
calibrated for N dB on {RECORDED} other prompts.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/frontier"))
    parser.add_argument("--results", type=Path, help="put the plot and the table there, such as tools/results")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    bundle = export(out)
    recorded, held_out = prompts(out)
    for target in TARGETS:
        arguments = ["--prompts", recorded, "--held-out", held_out, "--target-psnr", target, "--name", f"c{target}"]
        run(calibrate, bundle, *arguments, "--methods", *CALIBRATED, "--confirm", 99, "-o", out / RECORDS)
    chosen = labels(read_manifest(bundle).policies)
    policies = [choice for choices in chosen.values() for choice in choices]
    folder = out / "comparison"
    run(compare, bundle, "--prompts", held_out, "--seeds", NOISE, "--policies", *policies, "-o", folder, "--videos", 3)
    rows = totals(folder / "comparison.json")
    kinds = {Path(choice).stem: kind for kind, choices in chosen.items() for choice in choices}
    results: Path = options.results or folder
    plot(results / "frontier.png", curves(rows, kinds), [*CALIBRATED.values()], f"demo model, {HELD_OUT} prompts, CPU")
    (results / "frontier.md").write_text(HEAD + markdown(rows, kinds))


def export(out: Path) -> Path:
    """Export the demo bundle with single modules and TeaCache's probe; return its folder."""
    bundle, model = out / "demo.adacache", HERE / "model"
    if not bundle.exists():
        probes = ("--granularity", "module", "--probe", BLOCK_INPUT)
        command("adacache-export", model, "-o", bundle, "--text-encoder", model / "text_encoder", *probes)
    return bundle


def prompts(out: Path) -> tuple[Path, Path]:
    """Write files with prompts to record and prompts that are held out; return both."""
    captions = [world.caption(what) for what in world.EVERYTHING]
    random.Random(SEED).shuffle(captions)  # noqa: S311 - a shuffle that is always the same
    files = out / "recorded.txt", out / "held-out.txt"
    for path, some in zip(files, (captions[:RECORDED], captions[RECORDED : RECORDED + HELD_OUT]), strict=True):
        path.write_text("\n".join(some) + "\n")
    return files


def labels(presets: Mapping[str, Preset]) -> dict[str, list[str]]:
    """Return the policies to compare, by kind."""
    chosen = {kind: list(choices) for kind, choices in PUBLISHED.items()}
    for method, kind in CALIBRATED.items():
        named = [f"c{target}-{method}" for target in TARGETS]
        chosen[kind] = [name for name in named if name in presets]
    return {kind: choices for kind, choices in chosen.items() if choices}


def run(main: object, *arguments: object) -> None:
    """Run one of the project's commands in this process."""
    assert callable(main)
    status = main([str(argument) for argument in arguments])
    if status:
        raise SystemExit(status)


def totals(path: Path) -> list[Total]:
    """Return the totals of a comparison."""
    content = json.loads(path.read_text())
    return [
        Total(
            row["policy"],
            row["videos"],
            row["same"],
            {name: Estimate(**value) for name, value in row["metrics"].items()},
        )
        for row in content["totals"]
    ]


def curves(rows: Sequence[Total], kinds: Mapping[str, str]) -> dict[str, list[Point]]:
    """Return the settings of each kind, the fastest last."""
    found: dict[str, list[Point]] = {kind: [] for kind in kinds.values()}
    for row in rows:
        if row.policy in kinds and "psnr_db" in row.metrics:
            found[kinds[row.policy]].append(Point(row.metrics["time_ratio"], row.metrics["psnr_db"]))
    return {kind: sorted(points, key=lambda point: point.speed_up.mean) for kind, points in found.items() if points}


def markdown(rows: Sequence[Total], kinds: Mapping[str, str]) -> str:
    """Return the table, with a row for each policy, the fastest first."""
    titles = ("policy", "label", "computed calls", "operations", "speed-up", "PSNR, dB")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    full = next(row for row in rows if row.policy == "never").metrics["flops"].mean
    shown: Iterable[Total] = (row for row in rows if row.policy != "never" and "psnr_db" in row.metrics)
    for row in sorted(shown, key=lambda row: -row.metrics["time_ratio"].mean):
        quality = row.metrics["psnr_db"]
        cells = (
            kinds[row.policy],
            row.policy,
            f"{row.metrics['computed_calls'].mean:.1f}",
            f"{row.metrics['flops'].mean / full:.0%}",
            f"{row.metrics['time_ratio'].mean:.2f}",
            f"{quality.mean:.1f} ± {quality.margin:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
