"""The comparison of a checkpoint with what a model needs."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adacache_engines.errors import CheckpointError
from adacache_export.checkpoint import Checkpoint, check
from tests.helpers.tiny_models.checkpoints import EXPECTED, NAMES, SHAPE, make_tensors


def problems(tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]], **options: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        check(Checkpoint(tensors, (Path("a.ckpt"),)), expected, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    expected = {f"t{index}": (4, 3) for index in range(40)} | {"absent": (7,), "bent": (4, 3)}
    tensors = {f"t{index}": torch.zeros(4, 3) for index in range(40)} | {"bent": torch.zeros(3, 4)}
    tensors["t1"][3, 2] = float("nan")
    tensors["t2"][0, 0] = float("-inf")
    tensors["t3"] = torch.zeros(4, 3, dtype=torch.int8)
    for index in range(4, 20):
        del tensors[f"t{index}"]
    tensors["surplus"] = torch.zeros(2)
    message = problems(tensors, expected)
    assert "a.ckpt" in message
    assert "17 tensors missing" in message
    assert "t4, expected (4, 3)" in message
    assert "t15, expected (4, 3)" in message
    assert "t16, expected" not in message
    assert "and 5 more" in message
    assert "1 tensor unexpected:\n    surplus (2,)" in message
    assert "bent is (3, 4), expected (4, 3)" in message
    assert "t3 is int8" in message
    assert "t1 has 1 NaN and 0 infinite of 12 values" in message
    assert "t2 has 0 NaN and 1 infinite of 12 values" in message


@settings(max_examples=30)
@given(gone=st.sets(st.sampled_from(NAMES), min_size=1))
def test_every_missing_tensor_is_named(gone: set[str]) -> None:
    message = problems({name: tensor for name, tensor in make_tensors().items() if name not in gone}, EXPECTED)
    assert {name for name in NAMES if name in message} == gone


def test_a_fitting_checkpoint_passes() -> None:
    progress: list[int] = []
    check(Checkpoint(make_tensors(), (Path("a"),)), EXPECTED, progress=progress.append)
    assert progress[-1] == 4 * 4 * 60


def test_optional_tensors_may_be_missing_but_must_fit() -> None:
    expected = {**EXPECTED, "extra": (3,)}
    check(Checkpoint(make_tensors(), (Path("a"),)), expected, optional=("extra",))
    check(Checkpoint({**make_tensors(), "extra": torch.zeros(3)}, (Path("a"),)), expected, optional=("extra",))
    message = problems({**make_tensors(), "extra": torch.zeros(4)}, expected, optional=("extra",))
    assert "extra is (4,), expected (3,)" in message


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("layout", ["plain", "transposed"])
def test_one_bad_value_in_millions_is_found(dtype: torch.dtype, bad: float, layout: str) -> None:
    tensor = torch.zeros(3, 700_001, dtype=dtype)
    tensor[2, -1] = bad
    if layout == "transposed":
        tensor = tensor[:, -1000:].T
    shape = tuple(tensor.shape)
    assert f"x has {int(bad != bad)} NaN and {int(bad == bad)} infinite" in problems({"x": tensor}, {"x": shape})
    check(Checkpoint({"x": torch.full_like(tensor, 1e4)}, (Path("a"),)), {"x": shape})


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (1,)])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    check(Checkpoint({"x": torch.zeros(shape)}, (Path("a"),)), {"x": shape})


def test_a_tensor_that_only_claims_to_be_large_is_not_read() -> None:
    message = problems({"x": torch.zeros(1).expand(10**15)}, {"x": (3,)})
    assert "x is (1000000000000000,), expected (3,)" in message


def test_constants_must_agree() -> None:
    constants = {NAMES[0]: torch.full(SHAPE, 3.0, dtype=torch.float64)}
    for value, fits in ((3.0, True), (3.005, True), (3.05, False), (-3.0, False)):
        tensors = {**make_tensors(), NAMES[0]: torch.full(SHAPE, value)}
        if fits:
            check(Checkpoint(tensors, (Path("a"),)), EXPECTED, constants=constants)
        else:
            assert NAMES[0] in problems(tensors, EXPECTED, constants=constants)
