"""The memory of attention among all tokens of a video, which must not hold its scores."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.tiny_models.wan_block import FRAMES, write_block

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads its memory")]
RUN = """
import resource, sys
from pathlib import Path
import numpy as np
from adacache_engines.bundle.manifest import Graph
from adacache_engines.bundle.tensors import NUMPY_DTYPES
from adacache_engines.onnxruntime.backend import OrtBackend

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

folder, frames, tokens, most = Path(sys.argv[1]), *map(int, sys.argv[2:])
graph = Graph.model_validate_json((folder / "graph.json").read_text())
backend = OrtBackend(folder)
engine, random = backend.load(graph), np.random.default_rng(0)
sizes = {"batch": 1, "patch_frames": frames, "tokens": tokens, "text": 3}
buffers = {}
for spec in (*graph.inputs, *graph.outputs):
    buffers[spec.name] = backend.device.empty(spec.shape(sizes), NUMPY_DTYPES[spec.dtype])
    buffers[spec.name].write(random.standard_normal(spec.shape(sizes), np.float32))
before = peak()
resource.setrlimit(resource.RLIMIT_DATA, (before + 2 * most, -1))
engine.bind(buffers)()
assert np.isfinite(buffers[graph.outputs[0].name].read()).all()
print(peak() - before)
"""


@pytest.mark.parametrize("tokens", [1560, 3600], ids=["480p", "720p"])
def test_a_block_of_a_whole_video_writes_out_no_scores(tokens: int, tmp_path: Path) -> None:
    """81 frames are 32,760 tokens at 480p and 75,600 at 720p: the scores of one head take 4.3 and 23 GB."""
    from adacache_export.families.wan.config import WanConfig

    config = WanConfig(num_attention_heads=1, attention_head_dim=12, ffn_dim=16, text_dim=8, num_layers=1)
    graph = write_block(tmp_path, config)
    (tmp_path / "graph.json").write_text(graph.model_dump_json())
    scores = 4 * (FRAMES * tokens) ** 2
    most = scores // 20
    words = [str(tmp_path), str(FRAMES), str(tokens), str(most)]
    ran = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < most
