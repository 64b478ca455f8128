"""A signal: a small graph that turns tensors into a few numbers for a policy.

One entry holds everything about it: its name, the tensors that it takes, its graph as ONNX text, and the same in numpy.
The exporter writes the graphs into bundles and checks them against numpy; the runtime runs them; fakes use numpy.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.signals import Space

Arrays = Mapping[str, NDArray[Any]]
Input = Literal["cached", "new", "earlier", "later"]

FRAME_AXIS: Mapping[Space, int] = {"hidden": 1, "latents": 2}  # of the spaces that have frames
RANK: Mapping[Space, int] = {"hidden": 4, "latents": 5, "time": 2, "time_modulation": 2}


@dataclass(frozen=True)
class Signal:
    """A graph that gives numbers for each entry of its tensors' first axis.

    The numbers are sums over the other axes, so those of several guidance branches, prompts or devices add up; what is
    no sum, such as a ratio or a cosine, a policy makes of them.

    Attributes:
        name: how policies and bundles call it.
        inputs: the tensors that it takes: ``cached`` of an earlier call, ``new`` of this call; ``earlier`` and
            ``later`` (pairs,) are indices of frames to compare, in a signal that is measured at distances in frames.
        numbers: names of its outputs, each (first axis,) float32; no two signals of a bundle share one.
        nodes: the graph's nodes as ONNX text, from ``inputs`` to ``numbers``. ``{axes}`` stands for all axes but the
            first, ``{frames}`` for the axis of frames. Tensors come in the model's precision: cast them to float32 (1).
        reference: the same in numpy, from ``inputs`` in float64, (first axis, frames, ...), to ``numbers``.
        independent_axes: axes along which the work is independent: the numbers of a tensor's parts, cut along one of
            these, add up to those of the whole tensor.
        spaces: tensors that it is made for: the hidden state and what has its shape, the latents, or embeddings of
            timesteps and modulations that are made of them, which have no frames.
    """

    name: str
    inputs: tuple[Input, ...]
    numbers: tuple[str, ...]
    nodes: str
    reference: Callable[[Arrays], Arrays]
    independent_axes: tuple[str, ...]
    spaces: tuple[Space, ...] = ("hidden", "latents")

    @property
    def strided(self) -> bool:
        """Whether it compares frames, and is measured at distances in frames."""
        return "earlier" in self.inputs

    def keys(self, strides: Iterable[int]) -> tuple[str, ...]:
        """Return the keys of its numbers in a measurement at these distances in frames."""
        if not self.strided:
            return self.numbers
        return tuple(at_stride(number, stride) for stride in strides for number in self.numbers)

    def nodes_in(self, space: Space) -> str:
        """Return the graph's nodes for tensors of a space."""
        axes = ", ".join(map(str, range(1, RANK[space])))
        return self.nodes.replace("{axes}", axes).replace("{frames}", str(FRAME_AXIS.get(space, 1)))

    def in_numpy(self, space: Space, given: Arrays) -> dict[str, NDArray[np.float64]]:
        """Return the numbers of tensors of a space, each (first axis,), as the reference computes them."""
        frames = FRAME_AXIS.get(space, 1)
        arrays = {
            name: array if name in ("earlier", "later") else np.moveaxis(array.astype(np.float64), frames, 1)
            for name, array in given.items()
        }
        return {name: np.asarray(array, np.float64) for name, array in self.reference(arrays).items()}


def graph_name(signal: str, space: Space) -> str:
    """Return the name of a signal's graph for a space, such as ``hidden_change``."""
    return f"{space}_{signal}"


def at_stride(number: str, stride: int) -> str:
    """Return the key of a number that was measured between frames ``stride`` apart, such as ``motion/2``."""
    return f"{number}/{stride}"
