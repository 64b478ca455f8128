"""A bundle's stages as PyTorch modules with the bundle's weights, without the exporter's tracing."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import DTYPES
from adacache_export.arithmetic import arithmetic
from adacache_export.families.registry import FAMILIES, maker
from adacache_export.signals import Reference, signal_stages
from adacache_export.stages import Stage, hidden_of, shown_of_timestep
from adacache_runtime.caching.signals.registry import SIGNALS
from adacache_runtime.caching.signals.signal import FRAME_AXIS
from tools.gpu.skeleton import config_of, source_of


def modules_of(bundle: Bundle, kind: str) -> dict[str, nn.Module]:
    """Return the modules of the loop's graphs, by name of the graph's file (:func:`tools.gpu.skeleton.source_of`).

    Args:
        bundle: the opened bundle.
        kind: PyTorch's device for the weights, ``cuda`` or ``cpu``.
    """
    weights = load_file(bundle.path(bundle.manifest.weights), device=kind)
    modules = {}
    for stage in _stages(bundle, weights):
        stage.module.load_state_dict({name: weights[key] for name, key in stage.keys().items()}, assign=True)
        modules[stage.name] = stage.module.eval()
    return modules


def _stages(bundle: Bundle, weights: Mapping[str, Tensor]) -> list[Stage]:
    """Return the stages of the bundle's graphs and their arithmetic, without weights."""
    manifest = bundle.manifest
    family = FAMILIES[manifest.family]
    given = config_of(manifest)
    probes = {
        f"{kind}.{int(index)}.{site.split('.', 2)[2]}"
        for stage in manifest.stages
        for site in stage.probes
        for kind, index in [source_of(stage.graph).split(".")]
    }
    with torch.device("meta"):
        config = family.config_from(given, {name: tuple(tensor.shape) for name, tensor in weights.items()})
        stages = maker(family, manifest.conditioning == "kept-frames")(
            config, tuple(sorted(probes)), DTYPES[manifest.precision]
        )
        sums = arithmetic(stages, manifest.latent, manifest.guidance)
        measured = signal_stages(SIGNALS.values(), hidden_of(stages), manifest.latent, shown_of_timestep(stages))
        return [*stages, *sums, *(replace(stage, module=_on_device(stage.module)) for stage in measured)]


def _on_device(module: nn.Module) -> nn.Module:
    assert isinstance(module, Reference)
    return _OnDevice(module)


class _OnDevice(nn.Module):
    """A signal's reference on the device's own tensors: its few lines mean the same to numpy and to PyTorch."""

    def __init__(self, reference: Reference) -> None:
        super().__init__()
        self._signal, self._frames = reference.signal, FRAME_AXIS.get(reference.space, 1)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        tensors: dict[str, Any] = {
            name: tensor.float().movedim(self._frames, 1) if tensor.is_floating_point() else tensor
            for name, tensor in zip(self._signal.inputs, inputs, strict=True)
        }
        numbers: Mapping[str, Any] = self._signal.reference(tensors)
        return tuple(numbers[name] for name in self._signal.numbers)
