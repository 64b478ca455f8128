"""Checkpoints of published models are whole pipelines, cut to what the disk holds, and their exports are measured."""

import json
import sys
from pathlib import Path

import pytest
import torch

from adacache_export.checkpoint.pipeline_folder import open_source
from adacache_export.families.wan.config import WanConfig
from tools.speed import full_size
from tools.speed.checkpoint import write_published
from tools.speed.published import MODELS, Published

CONFIG = WanConfig(
    num_attention_heads=2, attention_head_dim=12, text_dim=20, freq_dim=32, ffn_dim=40, num_layers=3, in_channels=4,
    out_channels=4,
)  # fmt: skip
TINY = Published("wan", CONFIG, experts=2, index={"boundary_ratio": 0.875})


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("wan2.1-1.3b", 1_418_996_800), ("wan2.1-14b", 14_288_491_584), ("wan2.2-a14b", 28_576_983_168)],
)
def test_models_have_as_many_parameters_as_published(name: str, parameters: int) -> None:
    assert MODELS[name].parameters() == parameters


def test_a_model_is_cut_to_the_blocks_that_fit() -> None:
    whole = 4 * TINY.parameters()
    assert full_size.fitting(TINY, 4, whole) == TINY
    assert full_size.fitting(TINY, 4, whole - 1).depth == 2
    with pytest.raises(RuntimeError, match="hold no block"):
        full_size.fitting(TINY, 4, 10)


def test_weights_that_the_disk_does_not_hold_are_zeros(tmp_path: Path) -> None:
    nbytes = write_published(tmp_path / "model", TINY, "bfloat16", TINY.parameters() * 2 * 3 / 4)
    high, low = open_source(tmp_path / "model").transformers
    assert nbytes == high.file_bytes() + low.file_bytes()
    for transformer in (high, low):
        assert transformer.shapes() == dict(TINY.shapes())
        assert {tensor.dtype for tensor in transformer.tensors.values()} == {torch.bfloat16}
    assert all(tensor.any() for tensor in high.tensors.values())
    zeros = [name for name, tensor in low.tensors.items() if not tensor.any()]
    assert "blocks.2.ffn.net.2.weight" in zeros
    assert "condition_embedder.text_embedder.linear_1.weight" not in zeros


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_tiny_model_is_exported_and_the_page_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(MODELS, "tiny", TINY)  # type: ignore[misc]
    room = (TINY.with_depth(2).parameters() + TINY.parameters()) / 1e9  # at 2 bytes: two blocks, and half of the third
    words = ["tiny", "--precision", "bf16", "--disk", str(room), "--temp", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["full_size", *words, "--results", str(tmp_path), "--json", str(tmp_path / "j")])
    full_size.main()
    assert "tiny: writing a checkpoint" in capsys.readouterr().out
    page = (tmp_path / "full-size.md").read_text()
    assert "| tiny | bf16 | 2 of 3 |" in page
    (export,) = json.loads((tmp_path / "j").read_text())
    assert (export["depth"], export["published_depth"]) == (2, 3)
    assert 0 < export["random"] < 0.5
    assert 0 < export["stage_mb"] < export["costs"]["weights_mb"]
    assert export["costs"]["processor_s"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"full-size.md", "j"}
