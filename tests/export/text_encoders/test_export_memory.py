"""The export of a T5 holds one layer of it at a time: its peak memory does not grow with the encoder."""

import sys
from pathlib import Path

import pytest

from adacache_engines.bundle.files import open_bundle
from tools.speed.text_encoder import LAYERS, LAYOUTS, measure

GB = 1.0


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_text_encoder_of_a_gigabyte(layout: str, tmp_path: Path) -> None:
    costs, nbytes = measure(tmp_path, GB * 1e9, layout)
    assert nbytes == pytest.approx(GB * 1e9, rel=0.1)
    graphs = open_bundle(tmp_path / "model.adacache").manifest.text.encoder_stages
    assert len(graphs) == LAYERS + 2
    assert all(graph.check and graph.check.error <= graph.check.tolerance for graph in graphs)
    assert costs.peak_mb * 1e6 <= 1.5 * nbytes
    assert costs.private_mb * 1e6 <= 1.0 * nbytes  # torch, its exporter and a few layers; no copy of the encoder
