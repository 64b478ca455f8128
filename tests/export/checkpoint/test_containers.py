"""What training scripts put around a state dict."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from adacache_export.checkpoint import open_checkpoint
from tests.helpers.tiny_models.checkpoints import assert_same, make_tensors, refusal, save


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"state_dict": tensors},
        lambda tensors: {"model": tensors, "epoch": 3},
        lambda tensors: {"ema": {"module": tensors}},
        lambda tensors: {"module": {"state_dict": prefixed("module.model.", tensors)}},
        lambda tensors: prefixed("module.", tensors),
        lambda tensors: prefixed("_orig_mod.", tensors),
        lambda tensors: prefixed("model.", tensors),
        lambda tensors: prefixed("ema.", tensors),
        lambda tensors: {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()},
    ],
)
def test_containers_and_prefixes_are_unwrapped(tmp_path: Path, wrap: object) -> None:
    checkpoint = open_checkpoint(save(wrap(make_tensors()), tmp_path / "a.pt"))  # type: ignore[operator]
    assert_same(checkpoint, make_tensors())
    assert not any(tensor.requires_grad for tensor in checkpoint.tensors.values())


def test_prefixes_in_safetensors(tmp_path: Path) -> None:
    assert_same(open_checkpoint(save(prefixed("model.", make_tensors()), tmp_path / "a.safetensors")), make_tensors())


@pytest.mark.parametrize("nested", [True, False])
def test_the_moving_average_is_taken_unless_told_otherwise(tmp_path: Path, nested: bool) -> None:
    raw, ema = make_tensors(1), make_tensors(2)
    tree = {"model": raw, "ema": ema} if nested else {**prefixed("model.", raw), **prefixed("ema.", ema)}
    path = save({**tree, "optimizer": {"state": {0: torch.zeros(3)}}, "epoch": 7}, tmp_path / "a.ckpt")
    checkpoint = open_checkpoint(path)
    assert_same(checkpoint, ema)
    note = "\n".join(checkpoint.notes)
    assert "ema (4 tensors)" in note
    assert "model (4 tensors)" in note
    assert "optimizer" in note
    assert "epoch" in note
    assert_same(open_checkpoint(path, weights="model"), raw)
    message = refusal(path, weights="teacher")
    assert "ema (4 tensors)" in message
    assert "model (4 tensors)" in message


def test_a_set_is_chosen_by_part_of_its_name(tmp_path: Path) -> None:
    raw, ema = make_tensors(1), make_tensors(2)
    path = save({"state_dict": {**prefixed("model.", raw), **prefixed("model_ema.", ema)}}, tmp_path / "a.ckpt")
    assert_same(open_checkpoint(path), ema)
    assert_same(open_checkpoint(path, weights="model"), raw)
    assert "names several" in refusal(path, weights="state_dict")


def test_the_counters_of_an_average_are_not_a_set_of_weights(tmp_path: Path) -> None:
    tree = {**make_tensors(), "ema.decay": torch.tensor(0.99), "ema.num_updates": torch.tensor(5)}
    assert_same(open_checkpoint(save(tree, tmp_path / "a.pt")), make_tensors())


def test_an_average_under_rewritten_names_is_left(tmp_path: Path) -> None:
    average = {name.replace(".", ""): tensor for name, tensor in make_tensors(1).items()}
    tree = {**make_tensors(), **prefixed("model_ema.", average)}
    checkpoint = open_checkpoint(save(tree, tmp_path / "a.pt"))
    assert_same(checkpoint, make_tensors())
    assert "model_ema (4 tensors)" in checkpoint.notes[0]


def test_a_container_that_holds_itself(tmp_path: Path) -> None:
    tree: dict[str, object] = {"state_dict": make_tensors()}
    tree["model"] = tree
    assert_same(open_checkpoint(save(tree, tmp_path / "a.pt"), weights="state_dict"), make_tensors())


@pytest.mark.parametrize("tree", [{}, {"epoch": 3}, {"model": {"step": 1}}, [torch.zeros(3)], torch.zeros(3), 5])
def test_nothing_to_take(tmp_path: Path, tree: object) -> None:
    assert "expected" in refusal(save(tree, tmp_path / "a.pt"))


def test_sparse_tensors_are_not_taken_for_weights(tmp_path: Path) -> None:
    with torch.sparse.check_sparse_tensor_invariants(True):
        sparse = torch.eye(3).to_sparse()
        checkpoint = open_checkpoint(save({**make_tensors(), "extra": sparse}, tmp_path / "a.pt"))
    assert_same(checkpoint, make_tensors())
    assert "extra" in checkpoint.notes[0]
