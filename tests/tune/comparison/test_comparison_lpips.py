"""LPIPS from an ONNX file, and the tool that makes such files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.errors import InputError
from adacache_tune.comparison.quality import Lpips
from tests.helpers.model.fake_lpips import write_lpips


def test_lpips_goes_over_all_frames(tmp_path: Path) -> None:
    write_lpips(tmp_path / "lpips.onnx")
    lpips = Lpips(tmp_path / "lpips.onnx")
    random = np.random.default_rng(0)
    one, other = (random.integers(0, 256, (19, 8, 9, 3), np.uint8) for _ in range(2))
    assert lpips(one, other) == pytest.approx(np.abs(one.astype(float) - other).mean() / 127.5, rel=1e-5)
    assert lpips(one, one) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": 2}, "expected two inputs .* and one output: make one with tools/lpips_onnx.py"),
        ({"keep": True}, "expected one finite number an image"),
        ({"smallest": 9}, "takes frames of at least 9 pixels each way, not 8x7; choose a larger --size"),
    ],
)
def test_another_model_than_lpips(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_lpips(tmp_path / "lpips.onnx", **options)
    with pytest.raises(InputError, match=message):
        Lpips(tmp_path / "lpips.onnx").check(7, 8)


# tools/lpips_onnx.py


@pytest.fixture
def weights(tmp_path: Path) -> tuple[Path, Path]:
    """Files of random tensors with the names of torchvision's and lpips'."""
    import torch  # here: the other tests do not need it

    from tools.lpips_onnx import WIDTHS
    from tools.lpips_onnx import Lpips as Module

    torch.manual_seed(0)
    features = {f"features.{name}": value for name, value in Module().features.state_dict().items()}
    torch.save({**features, "classifier.6.bias": torch.zeros(1000)}, tmp_path / "backbone.pth")
    linear = {f"lin{layer}.model.1.weight": torch.rand(1, width, 1, 1) for layer, width in enumerate(WIDTHS)}
    torch.save(linear, tmp_path / "linear.pth")
    return tmp_path / "backbone.pth", tmp_path / "linear.pth"


def lpips_by_hand(backbone: Mapping[str, Any], linear: Mapping[str, Any], first: Any, second: Any) -> float:
    """Eq. 1 for one pair of images, from the tensors."""
    from torch.nn import functional

    def taps(image: Any) -> list[Any]:
        hidden = (image - image.new_tensor([-0.03, -0.088, -0.188])[:, None, None]) / image.new_tensor(
            [0.458, 0.448, 0.45]
        )[:, None, None]
        found = []
        for place, stride, padding, pooled in (
            (0, 4, 2, False),
            (3, 1, 2, True),
            (6, 1, 1, True),
            (8, 1, 1, False),
            (10, 1, 1, False),
        ):
            hidden = functional.max_pool2d(hidden, 3, 2) if pooled else hidden
            tensors = (backbone[f"features.{place}.{part}"] for part in ("weight", "bias"))
            hidden = functional.conv2d(hidden[None], *tensors, stride=stride, padding=padding)[0].relu()
            found.append(functional.normalize(hidden, dim=0))
        return found

    pairs = enumerate(zip(taps(first), taps(second), strict=True))
    return float(sum((linear[f"lin{i}.model.1.weight"][0] * (a - b) ** 2).sum(0).mean() for i, (a, b) in pairs))


def test_lpips_is_the_published_formula(weights: tuple[Path, Path], tmp_path: Path) -> None:
    import torch

    from tools import lpips_onnx

    module = lpips_onnx.load(*weights)
    first, second = torch.rand(2, 2, 3, 40, 33) * 2 - 1
    backbone, linear = (torch.load(path, weights_only=True) for path in weights)
    with torch.no_grad():
        found = module(first, second)
        expected = [lpips_by_hand(backbone, linear, *pair) for pair in zip(first, second, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    side = lpips_onnx.SMALLEST
    assert module(torch.ones(1, 3, side, side), torch.zeros(1, 3, side, side)).isfinite().all()
    with pytest.raises(InputError, match=r"expected a tensor features.0.weight of shape \(64, 3, 11, 11\), got none"):
        lpips_onnx.load(weights[1], weights[1])
    with pytest.raises(InputError, match=r"expected a tensor lin0.model.1.weight"):
        lpips_onnx.load(weights[0], weights[0])
    (tmp_path / "damaged.pth").write_bytes(b"no tensors")
    for path, message in (("damaged.pth", "no file of tensors"), ("missing.pth", "cannot be read")):
        with pytest.raises(InputError, match=message):
            lpips_onnx.load(tmp_path / path, weights[1])


@pytest.mark.slow
def test_lpips_as_a_file(weights: tuple[Path, Path], tmp_path: Path) -> None:
    import torch

    from tools import lpips_onnx

    module = lpips_onnx.load(*weights)
    lpips_onnx.write_onnx(module, tmp_path / "lpips.onnx")
    lpips = Lpips(tmp_path / "lpips.onnx")
    one, other = np.random.default_rng(0).integers(0, 256, (2, 11, 40, 50, 3), np.uint8)
    with torch.no_grad():
        pair = [torch.from_numpy(video.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1 for video in (one, other)]
        assert lpips(one, other) == pytest.approx(float(module(*pair).mean()), rel=1e-4)
    lpips.check(31, 31)
    with pytest.raises(InputError, match="at least 31 pixels"):
        lpips.check(31, 30)
