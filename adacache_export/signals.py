"""Signals as stages: the graphs of a signal for a model's tensors, checked against the signal's reference in numpy."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from adacache_engines.bundle.entries import Graph
from adacache_engines.bundle.latent_space import LatentSpace
from adacache_engines.bundle.signals import SignalEntry, Space
from adacache_engines.bundle.tensors import TensorSpec
from adacache_export.stages import Stage
from adacache_runtime.caching.signals.signal import Signal, graph_name

# how the independent axes of a signal are called in the tensors of a space
AXES: Mapping[Space, Mapping[str, tuple[str, ...]]] = {
    "hidden": {"patch_frames": ("patch_frames",), "tokens": ("tokens",)},
    "latents": {"patch_frames": ("frames",), "tokens": ("height", "width")},
    "time": {"patch_frames": (), "tokens": ()},
    "time_modulation": {"patch_frames": (), "tokens": ()},
}


class Reference(nn.Module):
    """A signal's reference in numpy, behind the interface of a stage's module.

    Args:
        signal: the signal.
        space: the space of its tensors.
    """

    def __init__(self, signal: Signal, space: Space) -> None:
        super().__init__()
        self.signal, self.space = signal, space

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the numbers, each (first axis,) float64, of tensors in the order of the signal's inputs."""
        arrays = [(tensor.double() if tensor.is_floating_point() else tensor).numpy(force=True) for tensor in inputs]
        numbers = self.signal.in_numpy(self.space, dict(zip(self.signal.inputs, arrays, strict=True)))
        return tuple(torch.from_numpy(numbers[name]) for name in self.signal.numbers)


def signal_stages(
    signals: Iterable[Signal], hidden: TensorSpec, latent: LatentSpace, shown: Mapping[Space, TensorSpec]
) -> list[Stage]:
    """Return a stage for each signal and each space that it is made for and the model shows.

    Args:
        signals: the signals.
        hidden: the hidden state between blocks.
        latent: the model's latents.
        shown: tensors of other spaces, of those that the model shows.
    """
    latents = TensorSpec(
        name="latents", dtype="float32", axes=("samples", latent.channels, "frames", "height", "width")
    )
    tensors: dict[Space, TensorSpec] = {"hidden": hidden, "latents": latents, **shown}
    return [_stage(signal, space, tensors[space]) for signal in signals for space in signal.spaces if space in tensors]


def _stage(signal: Signal, space: Space, tensor: TensorSpec) -> Stage:
    def given(name: str) -> TensorSpec:
        if name in ("earlier", "later"):
            return TensorSpec(name=name, dtype="int64", axes=("pairs",))
        return tensor.model_copy(update={"name": name})

    name = graph_name(signal.name, space)
    inputs = tuple(map(given, signal.inputs))
    outputs = tuple(TensorSpec(name=number, dtype="float32", axes=tensor.axes[:1]) for number in signal.numbers)
    reference, nodes = Reference(signal, space), signal.nodes_in(space)
    axes = tuple(axis for independent in signal.independent_axes for axis in AXES[space][independent])
    return Stage(name, name, reference, "", inputs, outputs, nodes=nodes, independent_axes=axes)


def signal_entry(signal: Signal, graphs: Mapping[str, Graph]) -> SignalEntry:
    """Return the manifest's entry for a signal, with its graphs out of these, by name."""
    named = {space: graph_name(signal.name, space) for space in signal.spaces}
    return SignalEntry(graphs={space: graphs[name] for space, name in named.items() if name in graphs})
