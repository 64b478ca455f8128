"""Bundles with plans of the faked TensorRT, and a pipeline on them."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adacache_engines.bundle.files import MANIFEST, Bundle, dump_manifest
from adacache_engines.bundle.manifest import Library, PlanEntry, PlanSet
from adacache_engines.bundle.tensors import NUMPY_DTYPES
from adacache_engines.tensorrt.plans import ENGINES
from adacache_runtime.pipeline import Pipeline
from tests.helpers.gpu.fake_cuda import FakeCuda
from tests.helpers.gpu.fake_tensorrt.contents import LEAST, MAGIC, SCRATCH
from tests.helpers.gpu.fake_tensorrt.module import VERSION, Module

Ranges = Mapping[str, tuple[int, int, int]]
WIDE: dict[str, Ranges] = {
    "any": dict.fromkeys(
        ("samples", "batch", "frames", "height", "width", "text", "calls", "pairs", "patch_frames", "tokens"),
        (1, 4, 64),
    )
}


@dataclass(frozen=True)
class Machine:
    """A pipeline on the fakes."""

    pipeline: Pipeline
    module: Module
    cuda: FakeCuda
    bundle: Bundle


def write_plans(
    bundle: Bundle,
    profiles: Mapping[str, Ranges] = WIDE,
    library: Library = "tensorrt-rtx",
    version: str = VERSION,
    targets: tuple[str, ...] = ("8.9",),
    **changes: dict[str, Any],
) -> Bundle:
    """The bundle with a set of plans; ``changes`` are those of plans' contents, by graph."""
    name = f"{library}-{version}"
    entries = []
    paths: dict[str, PlanEntry] = {}
    for graph in bundle.manifest.graphs():
        content = {
            "magic": MAGIC,
            "version": version,
            "function": graph.name,
            "graph": graph.model_dump(mode="json"),
            "profiles": list(profiles.values()),
            "scratch": SCRATCH,
            "targets": targets,
            **changes.get(graph.name, {}),
        }
        file = Path(ENGINES) / name / f"{graph.name}.plan"
        path = bundle.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        data = path.read_bytes()
        paths[graph.name] = PlanEntry(
            stage=graph.name,
            variant="full",
            graph=graph.name,
            path=file.as_posix(),
            nbytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            graph_sha256=bundle.manifest.files[graph.path].sha256,
            build_s=0.0,
        )
    for stage in bundle.manifest.stages:
        entries.append(paths[stage.graph.name])
        if stage.block:
            entries.append(paths["add"].model_copy(update={"stage": stage.graph.name, "variant": "reuse"}))
    entries += [entry for graph, entry in paths.items() if graph not in {e.stage for e in entries} | {"add"}]
    plans = PlanSet(
        library=library,
        version=version,
        targets=targets,
        precision=bundle.manifest.precision,
        profiles={key: dict(value) for key, value in profiles.items()},
        plans=tuple(entries),
    )
    manifest = bundle.manifest.model_copy(update={"plans": {**bundle.manifest.plans, name: plans}})
    (bundle.folder / MANIFEST).write_text(dump_manifest(manifest), encoding="utf-8")
    return Bundle(bundle.folder, manifest)


def needs(bundle: Bundle, sizes: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    """Activation memory of plans at sizes of the axes."""
    graphs = {graph.name: graph for graph in bundle.manifest.graphs()}
    first = {name: graphs[name].inputs[0] for name in names}
    return {
        name: LEAST + SCRATCH * math.prod(spec.shape(sizes)) * NUMPY_DTYPES[spec.dtype].itemsize
        for name, spec in first.items()
    }
