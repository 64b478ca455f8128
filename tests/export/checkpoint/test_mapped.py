"""Memory of tensors that are mapped from files is given back, and never anything else."""

import io
import sys
import zipfile
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from adacache_engines.errors import CheckpointError
from adacache_export.checkpoint import check, open_checkpoint
from adacache_export.checkpoint.mapped import give_back, taken

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
VALUES = 1 << 24  # 64 MB of float32


def resident_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


def mapped(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    return dict(open_checkpoint(path).tensors)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_pages_are_given_back_and_read_again(name: str, tmp_path: Path) -> None:
    values = torch.arange(VALUES, dtype=torch.float32)
    (tensor,) = mapped(tmp_path / name, {"a": values}).values()
    before = resident_mb()
    total = float(tensor.sum(dtype=torch.float64))
    assert resident_mb() - before > 50
    give_back(tensor)
    assert resident_mb() - before < 20
    assert float(tensor.sum(dtype=torch.float64)) == total == float(values.sum(dtype=torch.float64))


def test_a_checked_checkpoint_takes_no_memory(tmp_path: Path) -> None:
    tensors = mapped(
        tmp_path / "model.safetensors", {f"part{i}": torch.full((VALUES // 4,), i * 1.0) for i in range(4)}
    )
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    before = resident_mb()
    check(checkpoint, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    assert resident_mb() - before < 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_taken_is_a_copy(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.randn(3, 70)
    tensors = mapped(tmp_path / "model.safetensors", {"a": values, "b": values + 1})
    got = taken(tensors["a"], dtype)
    assert got.dtype == dtype
    assert torch.equal(got, values.to(dtype))
    got.fill_(0)
    assert torch.equal(tensors["a"], values)
    assert torch.equal(tensors["b"], values + 1)


def test_other_memory_is_left_alone() -> None:
    for values in (torch.randn(VALUES // 4), torch.randn(300, 300).t(), torch.randn(0), torch.randn(9, 9)[2:5, 3]):
        before = values.clone()
        give_back(values)
        assert torch.equal(values, before)


def test_numbers_in_the_other_byte_order_are_refused(tmp_path: Path) -> None:
    saved = io.BytesIO()
    torch.save({"a": torch.ones(3)}, saved)
    other = {"little": "big", "big": "little"}[sys.byteorder]
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            target.writestr(name, other if name.endswith("/byteorder") else source.read(name))
    with pytest.raises(CheckpointError, match=f"saved with {other} numbers"):
        open_checkpoint(path)
