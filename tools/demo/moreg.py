"""Measure whether Motion Regularization helps the worst prompts: AdaCache with and without it, at equal mean cost.

    python -m tools.demo.moreg [--out FOLDER] [--results FOLDER]

``FOLDER`` is that of ``tools.demo.frontier``: its records are searched, and its held-out prompts are run. Both
codebooks are calibrated for the same goal: the mean PSNR of the worst quarter of the prompts, within a number of
computed calls on average.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from adacache_runtime.caching.policies.measured.adacache import AdaCache, MoReg
from adacache_runtime.caching.policy import Policy
from adacache_runtime.caching.presets import FAST_30, policy_from
from adacache_tune.calibration.forecast import Forecaster
from adacache_tune.calibration.goal import PENALTY, Goal
from adacache_tune.calibration.methods import Search, adacache, adacache_moreg
from adacache_tune.calibration.records import load_record
from adacache_tune.commands.compare import main as compare
from tools.demo import world
from tools.demo.frontier import NOISE, RECORDS, export, prompts, run

CALLS = 13  # computed on average, as with the demo's own MoReg policy
TRIES = 1500
BY_HAND = Path(__file__).parent / "policies" / "fast-moreg.json"  # its schedule follows the content most
HEAD = """# Motion Regularization on the demo model

Made by `python -m tools.demo.moreg --results tools/results`, after `tools.demo.frontier`: policies that were calibrated
for the worst quarter of the prompts at equal average cost, on prompts that no calibration has seen.
`a / b / c` is for still, slow and fast motion in the prompt.

"""


@dataclass(frozen=True)
class WorstQuarter(Search):
    """A goal whose score is the quality of the worst prompts."""

    def score(self, policy: Policy[Any]) -> float:
        schedules = self.forecaster.schedules(policy)
        computed = fmean(map(len, schedules))
        levels = [
            Forecaster([record]).quality_db([schedule], extrapolated=False)
            for record, schedule in zip(self.forecaster.records, schedules, strict=True)
        ]
        return -worst_quarter(levels) + PENALTY * max(0.0, computed - CALLS) - 1e-3 * computed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/frontier"))
    parser.add_argument("--results", type=Path, help="put the table there, such as tools/results")
    options = parser.parse_args()
    out: Path = options.out
    records = [load_record(path) for path in sorted((out / RECORDS).glob("record-*.npz"))]
    search = WorstQuarter(Forecaster(records), Goal(), TRIES, extrapolated=False)
    policies = {
        "AdaCache, calibrated": adacache(search),
        "AdaCache + MoReg, default constants": AdaCache(codebook=FAST_30, moreg=MoReg()),
        "AdaCache + MoReg, calibrated": adacache_moreg(search),
        "AdaCache + MoReg, as in the demo": policy_from(str(BY_HAND)),
    }
    files = {}
    for name, policy in policies.items():
        files[name] = out / f"{name.replace(' ', '-').replace(',', '')}.json"
        files[name].write_text(json.dumps(policy.model_dump(mode="json"), indent=1) + "\n")
    bundle, (_, held_out) = export(out), prompts(out)
    arguments = ["--prompts", held_out, "--seeds", f"{NOISE}-{NOISE + 1}", "--videos", 0, "--force"]
    run(compare, bundle, *arguments, "--policies", *files.values(), "-o", out / "moreg")
    content = json.loads((out / "moreg" / "comparison.json").read_text())
    table = markdown(content["videos"], {path.stem: name for name, path in files.items()})
    print(table)
    if options.results:
        (options.results / "moreg.md").write_text(HEAD + table)


def worst_quarter(levels: Sequence[float]) -> float:
    return fmean(sorted(levels)[: max(1, len(levels) // 4)])


def markdown(videos: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Return the table with a row for each policy; ``a / b / c`` is for still, slow and fast motion."""
    kinds = tuple(world.SPEEDS)
    titles = ("policy", "computed calls", " / ".join(kinds), "PSNR, dB", " / ".join(kinds), "worst quarter")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for label, name in names.items():
        rows = [
            (world.attributes(video["prompt"]).speed, row)
            for video in videos
            for row in video["rows"]
            if row["policy"] == label
        ]

        def means(field: str, rows: Sequence[tuple[str, Mapping[str, Any]]] = rows) -> str:
            return " / ".join(f"{fmean(row[field] for kind, row in rows if kind == one):.1f}" for one in kinds)

        levels = [row["psnr_db"] for _, row in rows]
        cells = (
            name,
            f"{fmean(row['computed'] for _, row in rows):.1f}",
            means("computed"),
            f"{fmean(levels):.1f}",
            means("psnr_db"),
            f"{worst_quarter(levels):.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
