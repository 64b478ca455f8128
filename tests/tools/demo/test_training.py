"""The demo models are trained from their command lines, for two iterations; an interrupted training goes on."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tools.demo import train, train_latte

pytestmark = pytest.mark.slow


def log(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adherence is measured on two prompts instead of up to a hundred."""
    for module in (train, train_latte):
        whole = module.adherence
        position = 1 if module is train else 2

        def short(*given: Any, whole: Any = whole, position: int = position) -> dict[str, float]:
            return whole(*given[:position], 2, *given[position + 1 :])

        monkeypatch.setattr(module, "adherence", short)


@pytest.mark.parametrize("threads", [1])
def test_the_demo_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    before = torch.get_num_threads()
    words = ["train", "--work", str(tmp_path / "work"), "--model", str(tmp_path / "model"), "--threads", str(threads)]
    (tmp_path / "work").mkdir()
    try:
        monkeypatch.setattr(sys, "argv", [*words, "--iterations", "1"])
        train.main()
        first = load_file(tmp_path / "model" / "model.safetensors")
        monkeypatch.setattr(sys, "argv", [*words, "--iterations", "2"])
        train.main()
    finally:
        torch.set_num_threads(before)
    assert [entry["iteration"] for entry in log(tmp_path / "work") if "adherence" in entry][-1] == 2
    second = load_file(tmp_path / "model" / "model.safetensors")
    assert (
        first.keys() == second.keys() == load_file(Path(train.__file__).parent / "model" / "model.safetensors").keys()
    )
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_the_latte_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    (tmp_path / "work").mkdir()
    words = ["--work", str(tmp_path / "work"), "--model", str(tmp_path / "model"), "--iterations", "2"]
    monkeypatch.setattr(sys, "argv", ["train_latte", *words])
    try:
        train_latte.main()
    finally:
        torch.set_num_threads(before)
    name = "diffusion_pytorch_model.safetensors"
    made, kept = (load_file(folder / name) for folder in (tmp_path / "model", train_latte.HERE / "latte"))
    assert {key: value.shape for key, value in made.items()} == {key: value.shape for key, value in kept.items()}
    assert (tmp_path / "model" / "config.json").read_bytes() == (
        train_latte.HERE / "latte" / "config.json"
    ).read_bytes()
