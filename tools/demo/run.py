"""Go the whole way once on the demo model: export, full compute beside AdaCache, a video, a plot, the speed-up.

python -m tools.demo.run [--prompt TEXT] [--out FOLDER]
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from adacache_runtime.caching.presets import PRESETS, policy_from
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request

HERE = Path(__file__).parent
POLICY = HERE / "policies" / "fast-moreg.json"
PAIRS = 3  # generations of each kind, in alternation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="a red circle moves left fast")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the bundle and the results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    bundle, video, plot = (options.out / name for name in ("demo.adacache", "demo.mp4", "schedule.png"))
    model = HERE / "model"
    command("adacache-export", model, "-o", bundle, "--text-encoder", model / "text_encoder", "--force")
    command(
        "adacache-run",
        bundle,
        "--prompt",
        options.prompt,
        "--policy",
        POLICY,
        "-o",
        video,
        "--zoom",
        "10",
        "--plot",
        plot,
    )
    ratio = _speed_up(bundle, options.prompt)
    print(f"\nvideo          {video}\nschedule plot  {plot}")
    print(f"speed-up       {ratio:.2f} times over computing every call (median of {PAIRS} pairs, run in alternation)")


def command(program: str, *arguments: object) -> None:
    """Show one of the project's commands, and run it."""
    words = [program, *map(str, arguments)]
    print("$", shlex.join(words), flush=True)
    subprocess.run([str(Path(sys.executable).parent / program), *words[1:]], check=True)


def _speed_up(bundle: Path, prompt: str) -> float:
    pipeline = Pipeline.open(bundle)
    policies = (PRESETS["never"], policy_from(str(POLICY)))
    ratios = []
    for _ in range(PAIRS):
        full, cached = (
            pipeline.generate(Request(prompts=(prompt,), policy=policy)).trace.wall_ms() for policy in policies
        )
        ratios.append(full / cached)
    return sorted(ratios)[PAIRS // 2]


if __name__ == "__main__":
    main()
