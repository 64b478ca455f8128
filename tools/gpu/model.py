"""The bundles that are checked and measured, made here or on another machine; phases of a check."""

import contextlib
import io
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adacache_engines.bundle.files import open_bundle, read_manifest
from adacache_engines.bundle.manifest import PlanSet
from adacache_engines.bundle.shape_profiles import fixed_profile, shape_profile
from adacache_engines.errors import EngineError
from adacache_engines.tensorrt.build import BuildOptions
from adacache_engines.tensorrt.library import InstalledLibrary, gpu_target, open_library
from adacache_engines.tensorrt.plan_builder import build_plans
from adacache_engines.tensorrt.plans import choose
from tools.gpu.phases import LARGE, PRECISIONS
from tools.gpu.running.processes import ROOT
from tools.gpu.running.results import Report
from tools.gpu.skeleton import deepen, fill
from tools.speed.size import Size

DEMO = ROOT / "tools" / "demo" / "model"
PAIRS = 2  # of blocks in the large model's folder: one without and one with the probe
PROBE = "temporal.1.attn"
FULL = Size(depth=PAIRS, caption_width=4096, text=300)  # STDiT3-XL/2, but for its depth
DEPTH = 28  # of STDiT3-XL/2


def make_bundles(folder: Path, size: Size = FULL) -> None:
    """Export the demo model in each precision and the large model's blocks, with torch.

    The text encoder comes with float32 alone, since it is the same in all of them.
    """
    from adacache_export.convert import convert
    from adacache_export.options import Options
    from tools.speed.checkpoint import config_of, write_checkpoint

    with _exporter_quiet():
        for precision in PRECISIONS:
            encoder = DEMO / "text_encoder" if precision == "fp32" else None
            convert(DEMO, folder / precision, Options(precision=precision, text_encoder=encoder))
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


def compiled(folder: Path, library: InstalledLibrary, profiles: Sequence[str] = (), workers: int = 0) -> PlanSet:
    """Return the bundle's plans for this GPU, built where there are none.

    They are for the shape profiles that are named, or for the default video.

    Raises:
        AdaCacheError: the plans cannot be built.
    """
    bundle = open_bundle(folder)
    try:
        return choose(bundle, library.name, library.version, gpu_target())[1]
    except EngineError:
        names = profiles or [fixed_profile(bundle.manifest)]
        ranges = {name: shape_profile(bundle.manifest, name) for name in names}
        return build_plans(folder, library, ranges, BuildOptions(), workers=workers)


def run(arguments: Mapping[str, Any], report: Report) -> None:
    """Make the bundles in the new folder ``make``, or prepare the model that is measured.

    Args:
        arguments: ``make``; or the arguments of :func:`prepare`.
        report: gets what :func:`prepare` returns.
    """
    if "make" in arguments:
        folder = Path(arguments["make"])
        with _whole(folder) as part:
            make_bundles(part)
    else:
        report.told["model"] = prepare(**arguments)


def prepare(
    source: str, work: str, library: str | None = None, profiles: Sequence[str] = (), depth: int = DEPTH
) -> dict[str, Any]:
    """Make the large model in a new folder: fill in its weights, build plans, and set its depth.

    Args:
        source: folder of :func:`make_bundles`, its large model perhaps stripped.
        work: the model's new folder.
        library: library to build plans with; None = none.
        profiles: names of shape profiles to build plans for.
        depth: number of pairs of blocks.

    Returns:
        The model's configuration and precision, the size of its weights, and what was built.

    Raises:
        AdaCacheError: the plans cannot be built.
    """
    plans: dict[str, Any] = {}
    with _whole(Path(work)) as part:
        shutil.copytree(Path(source) / LARGE, part, dirs_exist_ok=True)
        if not (part / read_manifest(part).weights).is_file():
            fill(part)
        if library is not None:
            start = time.perf_counter()
            made = compiled(part, open_library(library), profiles)
            files = {entry.path: entry.nbytes for entry in made.plans}
            plans[library] = {
                "build_s": time.perf_counter() - start,
                "plans": len(files),
                "mb": sum(files.values()) / 1e6,
                "targets": list(made.targets),
            }
        deepen(part, depth)
        manifest = read_manifest(part)
    return {
        "config": manifest.config,
        "precision": manifest.precision,
        "weights_mb": manifest.files[manifest.weights].nbytes / 1e6,
        "distinct_pairs": PAIRS,
        "plans": plans,
    }


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Give a folder to fill, which has its name only when it is filled; what was left of an earlier attempt goes."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
