"""The graphs of signals against their references in numpy, through ONNX Runtime, in every precision."""

from pathlib import Path

import numpy as np
import pytest

from adacache_engines.bundle.latent_space import LatentSpace
from adacache_engines.bundle.manifest import DTYPES, TOLERANCES, Precision
from adacache_engines.bundle.tensors import TensorSpec
from adacache_engines.errors import EngineError, ExportError
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_export.phases import Progress
from adacache_export.signals import signal_entry, signal_stages
from adacache_export.tracing.graphs import export_graphs
from adacache_export.verification.sizes import check_sizes
from adacache_runtime.caching.signals.registry import SIGNALS
from adacache_runtime.caching.signals.signal import Signal
from tests.helpers.model.fake_model import manifest
from tests.helpers.policies.cosine import COSINE

LATENT: LatentSpace = manifest().latent


def export(folder: Path, signals: list[Signal], precision: Precision) -> dict[str, float]:
    """The error of each graph."""
    hidden = TensorSpec(name="hidden", dtype=DTYPES[precision], axes=("batch", "patch_frames", "tokens", 24))
    time = TensorSpec(name="time_embedding", dtype="float32", axes=("batch", 24))
    modulation = TensorSpec(name="time_modulation", dtype="float32", axes=("batch", 144))
    stages = signal_stages(signals, hidden, LATENT, {"time": time, "time_modulation": modulation})
    (folder / "onnx").mkdir()
    weights, sizes, backend = folder / "onnx" / "none", check_sizes(LATENT), OrtBackend(folder)
    graphs = export_graphs(stages, precision, weights, {}, lambda _: pytest.fail(), sizes, backend, Progress())
    for signal in signals:
        entry = signal_entry(signal, graphs)
        assert tuple(entry.graphs) == signal.spaces
        for space, graph in entry.graphs.items():
            frames = {"hidden": "patch_frames", "latents": "frames"}.get(space)
            assert (frames in graph.independent_axes) == (bool(frames) and "patch_frames" in signal.independent_axes)
            assert tuple(spec.name for spec in graph.inputs) == signal.inputs
            assert tuple(spec.name for spec in graph.outputs) == signal.numbers
    return {name: graph.check.error for name, graph in graphs.items() if graph.check}


@pytest.mark.parametrize("precision", DTYPES)
def test_graphs_are_their_references(tmp_path: Path, precision: Precision) -> None:
    """Sums are float32 whatever the precision, so the error is that of float32."""
    errors = export(tmp_path, [*SIGNALS.values(), COSINE], precision)
    changes = {"hidden_change", "latents_change", "time_change", "time_modulation_change"}
    assert set(errors) == {*changes, "hidden_motion", "latents_new_magnitude", "hidden_cosine"}
    assert max(errors.values()) <= TOLERANCES["fp32"]


NONSENSE = {
    "no text of ONNX": ("number = = Abs (new)", ExportError, "hidden_broken are not written in ONNX's textual form"),
    "no operator of ONNX": ("number = Nonsense (new)", EngineError, "No Op registered for Nonsense"),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_a_graph_that_cannot_be_read_is_refused(tmp_path: Path, case: str) -> None:
    nodes, error, message = NONSENSE[case]
    broken = Signal("broken", ("new",), ("number",), nodes, lambda _given: {"number": np.zeros(1, np.float32)}, ())
    with pytest.raises(error, match=message):
        export(tmp_path, [broken], "fp32")
