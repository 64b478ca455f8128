"""Write LPIPS as an ONNX file for ``adacache-compare --lpips``, from weights that are at hand.

    python tools/lpips_onnx.py --backbone alexnet-owt-7be5be79.pth --linear alex.pth -o lpips.onnx

``--backbone`` is torchvision's AlexNet (``torchvision.models.alexnet``, a state dict), ``--linear`` the package lpips'
``lpips/weights/v0.1/alex.pth``. Neither package is needed, and no code in the files is run.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from adacache_engines.errors import AdaCacheError, InputError
from adacache_export.tracing.trace import quiet
from adacache_runtime.media.files import check_writable, writing
from adacache_tune.comparison.quality import SMALLEST_SIDE

WIDTHS = (64, 192, 384, 256, 256)  # of the five layers that are compared
TAPS = (1, 4, 7, 9, 11)  # their places in AlexNet's features
# ImageNet's mean and deviation, for images in [-1, 1]
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPSILON = 1e-10
SMALLEST = 31  # pixels; below, the second pooling has nothing to pool, where ONNX Runtime would still give a number


class Lpips(nn.Module):
    """LPIPS with AlexNet, version 0.1 (Zhang et al., arXiv 1801.03924, eq. 1).

    It is the squared difference of the features, each of unit length across channels, weighted by channel, averaged
    over places and summed over layers.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
        )
        self.weights = nn.ParameterList([nn.Parameter(torch.ones(1, width, 1, 1)) for width in WIDTHS])
        self.register_buffer("shift", torch.tensor(SHIFT).reshape(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).reshape(1, 3, 1, 1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the distance of two batches (images, 3, height, width) in [-1, 1] as (images,)."""
        pairs = zip(self._taps(first), self._taps(second), self.weights, strict=True)
        return torch.stack([(weight * (a - b) ** 2).sum(1).mean((1, 2)) for a, b, weight in pairs]).sum(0)

    def _taps(self, images: Tensor) -> list[Tensor]:
        hidden, taps = (images - self.shift) / self.scale, []
        for index, layer in enumerate(self.features):
            hidden = layer(hidden)
            if index in TAPS:
                taps.append(hidden / (torch.sqrt((hidden**2).sum(1, keepdim=True)) + EPSILON))
        return taps


def load(backbone: Path, linear: Path) -> Lpips:
    """Read the weights.

    Raises:
        InputError: a file cannot be read, or holds other tensors.
    """
    features, weights = _state(backbone), _state(linear)
    module = Lpips().eval()
    wanted = {
        **{f"features.{name}": (backbone, f"features.{name}", features) for name in module.features.state_dict()},
        **{f"weights.{layer}": (linear, f"lin{layer}.model.1.weight", weights) for layer in range(len(WIDTHS))},
    }
    state = module.state_dict()
    for name, (path, stored, tensors) in wanted.items():
        if stored not in tensors or tensors[stored].shape != state[name].shape:
            got = tuple(tensors[stored].shape) if stored in tensors else "none"
            raise InputError(f"{path}: expected a tensor {stored} of shape {tuple(state[name].shape)}, got {got}")
        state[name] = tensors[stored].float()
    module.load_state_dict(state)
    return module


def write_onnx(module: Lpips, path: Path) -> None:
    """Write the ONNX file.

    Raises:
        InputError: the file cannot be written.
    """
    images = (torch.zeros(2, 3, 96, 64), torch.ones(2, 3, 96, 64))  # one tensor twice would be traced as one input
    free = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with quiet():
        program = torch.onnx.export(
            module,
            images,
            dynamo=True,
            dynamic_shapes=(free, free),
            input_names=["first", "second"],
            output_names=["distance"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props[SMALLEST_SIDE] = str(SMALLEST)
    with writing(path) as file:
        file.write(program.model_proto.SerializeToString())


def _state(path: Path) -> Mapping[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(f"{path} is no file of tensors that torch.save wrote: {error}") from error
    if not isinstance(state, Mapping):
        raise InputError(f"{path} holds no state dict; expected names and their tensors")
    return state


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", type=Path, required=True, metavar="FILE.pth")
    parser.add_argument("--linear", type=Path, required=True, metavar="FILE.pth")
    parser.add_argument("-o", "--output", type=Path, default=Path("lpips.onnx"), metavar="FILE.onnx")
    options = parser.parse_args()
    try:
        check_writable(options.output)
        write_onnx(load(options.backbone, options.linear), options.output)
    except AdaCacheError as error:
        print(f"lpips_onnx: {error}", file=sys.stderr)
        return 1
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
