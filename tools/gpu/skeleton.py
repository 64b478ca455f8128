"""A large model with random weights that travels as a small folder: graphs, manifest, and the weights' header.

The weights are drawn where the model is run. Blocks are alike, so two pairs of them serve for any depth: stages of
the deep model point at the same graphs and plans, as often as it has blocks. A call then does the deep model's work
in full; what differs is that weights of a few blocks take the memory, not those of all.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from adacache_engines.bundle.files import MANIFEST, dump_manifest, read_manifest, sha256_file
from adacache_engines.bundle.manifest import FileEntry, Graph, Manifest, PlanEntry, StageEntry, Variant
from adacache_engines.bundle.tensors import ELEMENT_TYPES
from adacache_engines.errors import InputError

HEADER = ".header"  # a weights file without its data
LENGTH = 8  # bytes of a safetensors file before its header
NUMPY_DTYPES = {kind.safetensors: kind.numpy for kind in ELEMENT_TYPES.values()}
DRAWN = 1 << 24  # numbers that are drawn; longer tensors repeat them


def strip(folder: Path) -> None:
    """Take a bundle's weights out, all but their header; it is no bundle then until :func:`fill`."""
    weights = folder / read_manifest(folder).weights
    with weights.open("rb") as file:
        start = file.read(LENGTH)
        header = file.read(int.from_bytes(start, "little"))
    weights.with_suffix(HEADER).write_bytes(start + header)
    weights.unlink()


def fill(folder: Path) -> None:
    """Draw random weights into a stripped bundle, which is a bundle again afterwards.

    Matrices keep the scale of their inputs, so that hidden states stay finite through all blocks.

    Raises:
        InputError: the folder is not a stripped bundle.
    """
    manifest = read_manifest(folder)
    weights = folder / manifest.weights
    stripped = weights.with_suffix(HEADER)
    if not stripped.is_file():
        raise InputError(f"{folder} is no stripped bundle: it has no {stripped.name}; make one with --pack")
    start = stripped.read_bytes()
    header = json.loads(start[LENGTH:])
    normal = np.random.default_rng(0).standard_normal(DRAWN, np.float32)
    with weights.open("wb") as file:
        file.write(start)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
            shape = tuple(entry["shape"])
            count = int(np.prod(shape))
            values = np.resize(normal, count) if not name.endswith("_norm.weight") else np.ones(count, np.float32)
            if len(shape) > 1:
                values = values * (0.5 * np.prod(shape[1:]) ** -0.5)
            elif not name.endswith("_norm.weight"):
                values = values * 0.02
            data = values.astype(NUMPY_DTYPES[entry["dtype"]])
            first, last = entry["data_offsets"]
            assert file.tell() == len(start) + first, name
            assert data.nbytes == last - first, name
            file.write(data.tobytes())
    stripped.unlink()
    entry = FileEntry(sha256=sha256_file(weights), nbytes=weights.stat().st_size)
    _write(folder, manifest.model_copy(update={"files": {**manifest.files, manifest.weights: entry}}))


def deepen(folder: Path, depth: int) -> None:
    """Make a model with ``depth`` pairs of blocks out of a bundle with two, whose second pair has the probe.

    The middle pair becomes the one with the probe, all others the one without.

    Raises:
        InputError: the bundle has not two pairs, or a probe elsewhere.
    """
    manifest = read_manifest(folder)
    blocks = manifest.stages_of("block")
    plain, watched = ([stage for stage in blocks if stage.index == index] for index in (0, 1))
    if len(blocks) != 2 * len(plain) or len(watched) != len(plain) or any(stage.probes for stage in plain):
        names = ", ".join(stage.graph.name for stage in blocks)
        raise InputError(f"{folder} has the blocks {names}; expected two pairs, with probes in the second")
    middle = (depth - 1) // 2
    stages, sources = [], {}
    for index in range(depth):
        for stage in watched if index == middle else plain:
            deep = _numbered(stage, index)
            stages.append(deep)
            sources[deep.graph.name] = stage.graph.name
    before = [stage for stage in manifest.stages if not stage.block]
    deep_manifest = manifest.model_copy(
        update={
            "config": {**manifest.config, "depth": depth},
            "stages": (*before[:-1], *stages, before[-1]),
            "plans": {
                name: plans.model_copy(update={"plans": tuple(_repeated(plans.plans, sources))})
                for name, plans in manifest.plans.items()
            },
        }
    )
    _write(folder, deep_manifest)


def _numbered(stage: StageEntry, index: int) -> StageEntry:
    graph = stage.graph.model_copy(update={"name": f"{stage.kind}.{index:02d}"})
    probes = {_site(site, index): probe for site, probe in stage.probes.items()}
    return stage.model_copy(update={"graph": graph, "index": index, "probes": probes})


def _site(site: str, index: int) -> str:
    kind, _, rest = site.split(".", 2)
    return f"{kind}.{index}.{rest}"


def _repeated(entries: tuple[PlanEntry, ...], sources: Mapping[str, str]) -> list[PlanEntry]:
    """Return the plans of the deep model, which are those of the stages that its stages were made from."""
    made_from = {(entry.stage, entry.variant): entry for entry in entries}
    repeated = [entry for entry in entries if entry.stage not in sources.values()]
    for stage, source in sources.items():
        for variant in get_args(Variant):
            entry = made_from[source, variant]
            graph = stage if entry.graph == source else entry.graph
            repeated.append(entry.model_copy(update={"stage": stage, "graph": graph}))
    return repeated


def source_of(graph: Graph) -> str:
    """Return the name of the graph whose file a stage uses: another one's in a model that was deepened."""
    return Path(graph.path).stem


def _write(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(dump_manifest(manifest), encoding="utf-8")


def config_of(manifest: Manifest) -> dict[str, Any]:
    """Return the configuration that the graphs' own weights belong to."""
    depth = 1 + max(int(source_of(stage.graph).split(".")[1]) for stage in manifest.stages if stage.block)
    return {**manifest.config, "depth": depth}
