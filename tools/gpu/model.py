"""The bundles that are checked and measured, made here or on another machine.

As a command it prepares the benchmark's model in a process of its own:
``python -m tools.gpu.model PREPARATION_AS_JSON FILE`` writes a description of it to FILE.
"""

import contextlib
import io
import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adacache_engines.bundle.files import open_bundle, read_manifest
from adacache_engines.bundle.manifest import Library, PlanSet, Precision
from adacache_engines.bundle.shape_profiles import fixed_profile, shape_profile
from adacache_engines.errors import EngineError
from adacache_engines.tensorrt.build import BuildOptions
from adacache_engines.tensorrt.library import CURRENT, InstalledLibrary, gpu_target, open_library
from adacache_engines.tensorrt.plan_builder import build_plans
from adacache_engines.tensorrt.plans import choose
from tools.gpu.skeleton import deepen, fill
from tools.speed.size import Size

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "tools" / "demo" / "model"
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
LARGE = "xl2"  # folder of the benchmark's model, beside one folder a precision
PAIRS = 2  # of blocks in the large model's folder: one without and one with the probe
PROBE = "temporal.1.attn"
FULL = Size(depth=PAIRS, caption_width=4096, text=300)  # STDiT3-XL/2, but for its depth
DEPTH = 28  # of STDiT3-XL/2


def make_bundles(folder: Path, size: Size = FULL) -> None:
    """Export the demo model in each precision and the large model's blocks, with torch."""
    from adacache_export.convert import convert
    from adacache_export.options import Options
    from tools.speed.checkpoint import config_of, write_checkpoint

    with _exporter_quiet():
        for precision in PRECISIONS:
            convert(DEMO, folder / precision, Options(precision=precision, text_encoder=DEMO / "text_encoder"))
        checkpoint = folder / "random.safetensors"
        write_checkpoint(checkpoint, config_of(size))
        convert(checkpoint, folder / LARGE, Options(precision="fp16", probes=(PROBE,)))
        checkpoint.unlink()


@contextlib.contextmanager
def _exporter_quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def build_options(library: Library, taken: str | None) -> BuildOptions:
    """Return the options to build plans for a target that is used on purpose: ``current``, or a named one."""
    return BuildOptions(targets=(CURRENT,) if library == "tensorrt-rtx" and taken == CURRENT else ())


def run_target(library: Library, taken: str | None) -> str | None:
    """Return the target to open plans for; None for those of the current GPU."""
    return taken if library == "tensorrt-rtx" and taken != CURRENT else None


def compiled(
    folder: Path, library: InstalledLibrary, profiles: Sequence[str] = (), taken: str | None = None, workers: int = 0
) -> PlanSet:
    """Return the bundle's plans for this GPU, built where there are none.

    They are for the shape profiles that are named, or for the default video.

    Raises:
        AdaCacheError: the plans cannot be built.
    """
    bundle = open_bundle(folder)
    try:
        return choose(bundle, library.name, library.version, run_target(library.name, taken) or gpu_target())[1]
    except EngineError:
        names = profiles or [fixed_profile(bundle.manifest)]
        ranges = {name: shape_profile(bundle.manifest, name) for name in names}
        return build_plans(folder, library, ranges, build_options(library.name, taken), workers=workers)


@dataclass(frozen=True)
class Preparation:
    """The preparation of the benchmark's model.

    Attributes:
        source: folder of :func:`make_bundles`, its large model perhaps stripped.
        work: the model's new folder.
        libraries: libraries to build plans with.
        profiles: names of shape profiles.
        taken: see :func:`build_options`.
        depth: number of pairs of blocks.
    """

    source: str
    work: str
    libraries: tuple[Library, ...]
    profiles: tuple[str, ...]
    taken: str | None = None
    depth: int = DEPTH


def prepare(preparation: Preparation) -> dict[str, Any]:
    """Fill in weights, build plans and set the depth; the result says what a library cannot build."""
    work = Path(preparation.work)
    shutil.copytree(Path(preparation.source) / LARGE, work)
    if not (work / read_manifest(work).weights).is_file():
        fill(work)
    plans: dict[str, Any] = {}
    for name in preparation.libraries:
        start = time.perf_counter()
        try:
            made = compiled(work, open_library(name), preparation.profiles, preparation.taken)
        except EngineError as error:
            plans[name] = {"failed": str(error)}
            continue
        files = {entry.path: entry.nbytes for entry in made.plans}
        plans[name] = {
            "build_s": time.perf_counter() - start,
            "plans": len(files),
            "mb": sum(files.values()) / 1e6,
            "targets": list(made.targets),
        }
    deepen(work, preparation.depth)
    manifest = read_manifest(work)
    return {
        "config": manifest.config,
        "precision": manifest.precision,
        "weights_mb": manifest.files[manifest.weights].nbytes / 1e6,
        "distinct_pairs": PAIRS,
        "plans": plans,
    }


def main(preparation: str, file: str) -> None:
    Path(file).write_text(json.dumps(prepare(Preparation(**json.loads(preparation)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
