"""The outputs of the original implementations in ``data/``, and engines run by hand on named arrays."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import Graph
from adacache_engines.bundle.tensors import NUMPY_DTYPES
from adacache_engines.contract.engine import Backend
from adacache_runtime.request import Captions, Request

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data"
OPEN_SORA = DATA / "open-sora"
DEMO = ROOT / "tools" / "demo" / "model"  # the checkpoint that the checkout brings
# what the original was told in the sampling runs; its tiny latents have another size
SIZE = {"height": 48, "width": 80, "frames": 17, "fps": (24.0,), "guidance": 7.0}

# how much of each frame of the sampling run's two samples is made anew, for runs that keep frames
MASK = np.array([[0, 1, 0.45, 1, 1], [1, 0.7, 1, 0, 1]], np.float32)

Arrays = dict[str, NDArray[Any]]


def arrays(path: Path) -> Arrays:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def config(kind: type[Any]) -> Any:
    """Return the reference model's configuration as the family's own dataclass."""
    given = json.loads((OPEN_SORA / "config_A.json").read_text())
    known = {field.name for field in fields(kind)}
    return kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in given.items() if key in known})


def captions() -> Captions:
    inputs = arrays(OPEN_SORA / "inputs_A.npz")
    return Captions(inputs["y"][:, 0], inputs["mask"].astype(bool))


def request(**options: Any) -> Request:
    """Return the request of the reference sampling run, changed by ``options``."""
    usual = {**SIZE, "captions": captions(), "latents": arrays(OPEN_SORA / "sampling_A.npz")["z0"], "steps": 30}
    return Request(**{**usual, **options})


def run_graph(backend: Backend, graph: Graph, tensors: Mapping[str, NDArray[Any]], sizes: Mapping[str, int]) -> Arrays:
    """Run one engine on named arrays; ``sizes`` are those of the dynamic axes."""
    specs = (*graph.inputs, *graph.outputs)
    buffers = {spec.name: backend.device.empty(spec.shape(sizes), NUMPY_DTYPES[spec.dtype]) for spec in specs}
    for spec in graph.inputs:
        buffers[spec.name].write(tensors[spec.name].astype(NUMPY_DTYPES[spec.dtype]))
    backend.load(graph).bind(buffers)()
    return {spec.name: buffers[spec.name].read() for spec in graph.outputs}


def drawn(seed: int, *before: int) -> NDArray[np.float32]:
    """Return seeded noise of shape (*before, samples, channels, frames, rows, columns) of the sampling run."""
    shape = arrays(OPEN_SORA / "sampling_A.npz")["z0"].shape
    return np.random.default_rng(seed).standard_normal((*before, *shape), np.float32)


def worst(given: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest absolute difference; NaN if there is one."""
    assert given.shape == expected.shape
    return float(np.abs(given.astype(np.float64) - expected.astype(np.float64)).max())
