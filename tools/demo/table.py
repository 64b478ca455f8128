"""Make the README's table: quality and speed of each policy on the demo model, all measured in one run.

    python -m tools.demo.table [--bundle FOLDER] [--prompts N] [--json FILE] [--readme README.md]

For each prompt all policies run one after the other, so a ratio compares neighbours in time. PSNR and SSIM are against
full compute with the same noise; adherence is the share of colour, shape, direction and speed read off right.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from adacache_runtime.caching.presets import PRESETS, policy_from
from adacache_runtime.media.video import to_pixels
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_tune.comparison.quality import similarity
from tools.demo import checker, world

POLICIES = Path(__file__).parent / "policies"
ROWS = {
    "never-reuse": "never",
    "AdaCache slow": str(POLICIES / "slow.json"),
    "AdaCache fast": str(POLICIES / "fast.json"),
    "AdaCache fast + MoReg": str(POLICIES / "fast-moreg.json"),
}
SPEEDS = ("still", "slow", "fast")
SEED = 100
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


@dataclass(frozen=True)
class Generated:
    """The numbers of one video."""

    policy: str
    speed: str
    computed: int
    wall_ms: float
    psnr: float  # dB, infinite for full compute itself
    ssim: float
    right: dict[str, bool]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("out/demo.adacache"))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--json", type=Path, help="write every video's numbers there")
    parser.add_argument("--readme", type=Path, help="put the table there, between its two marks")
    options = parser.parse_args()
    pipeline = Pipeline.open(options.bundle)
    rows = measure(pipeline, world.prompts(options.prompts, SEED))
    table = markdown(rows)
    print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if options.readme:
        text = options.readme.read_text()
        before, _, rest = text.partition(BEGIN)
        options.readme.write_text(before + BEGIN + table + END + rest.partition(END)[2])


def measure(pipeline: Pipeline, prompts: Sequence[str]) -> list[Generated]:
    """Return the numbers of every prompt under every policy."""
    pipeline.generate(Request(prompts=(prompts[0],)))  # the first run also fills caches
    rows = []
    for seed, prompt in enumerate(track(prompts, "generating"), SEED):
        full: NDArray[np.uint8] | None = None
        for name, choice in ROWS.items():
            policy = PRESETS[choice] if choice in PRESETS else policy_from(choice)
            result = pipeline.generate(Request(prompts=(prompt,), seed=seed, policy=policy))
            frames = to_pixels(result.latents[0])
            full = frames if full is None else full
            rows.append(
                Generated(
                    name,
                    world.attributes(prompt).speed,
                    len(result.trace.computed()),
                    result.trace.wall_ms(),
                    *similarity(full, frames),
                    checker.agreement(result.latents[0], prompt),
                )
            )
    return rows


def markdown(rows: Sequence[Generated]) -> str:
    """Return the table; a cell ``a / b / c`` is for still, slow and fast motion."""
    speeds = " / ".join(SPEEDS)
    titles = ("policy", "computed calls", speeds, "time ratio", "PSNR, dB", "SSIM", "adherence", speeds)
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    full = {index: row.wall_ms for index, row in enumerate(r for r in rows if r.policy == "never-reuse")}
    for name in ROWS:
        mine = [row for row in rows if row.policy == name]
        ratio = median(full[index] / row.wall_ms for index, row in enumerate(mine))
        finite = [row.psnr for row in mine if np.isfinite(row.psnr)]
        cells = [
            name,
            f"{fmean(row.computed for row in mine):.1f}",
            _by_speed(mine, lambda some: f"{fmean(row.computed for row in some):.1f}"),
            f"{ratio:.2f}",
            f"{fmean(finite):.1f}" if finite else "same",
            f"{fmean(row.ssim for row in mine):.3f}",
            f"{adherence(mine):.0%}",
            _by_speed(mine, lambda some: f"{adherence(some):.0%}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _by_speed(rows: Sequence[Generated], cell: Callable[[Sequence[Generated]], str]) -> str:
    parts = [[row for row in rows if row.speed == speed] for speed in SPEEDS]
    return " / ".join(cell(part) if part else "-" for part in parts)


def adherence(rows: Sequence[Generated]) -> float:
    """Return the share of attributes that are right, over all rows."""
    return fmean(right for row in rows for right in row.right.values())


if __name__ == "__main__":
    main()
