"""A stage: the piece of a model that becomes one graph, and how stages run one after another in torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from adacache_engines.bundle import Term
from adacache_engines.tensors import TensorSpec

OUT = "_out"  # the output "hidden_out" is the next stage's "hidden"


@dataclass(frozen=True)
class Stage:
    """One graph of the model.

    Attributes:
        name: ``text``, ``embed``, ``spatial.00``, ..., ``final``.
        kind: stages of one kind differ in their weights only and are traced once.
        module: called with the inputs in the order of ``inputs``, returns the outputs in the order of ``outputs``.
        prefix: what to put before a parameter's name to get the checkpoint's key.
        inputs, outputs: names, dtypes and axes.
        probes: site (``temporal.13.attn``) -> the output that carries it.
        block: has the form hidden' = hidden + r(hidden, ...), so its residual can be cached.
        flops: its work, see :mod:`adacache_export.costs`; None = not counted.
    """

    name: str
    kind: str
    module: nn.Module
    prefix: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    probes: Mapping[str, str] = field(default_factory=dict)
    block: bool = False
    flops: tuple[Term, ...] | None = None

    def keys(self) -> dict[str, str]:
        """Parameter name of the module -> key in the checkpoint."""
        return {name: self.prefix + name for name, _ in self.module.named_parameters()}


def run_stages(stages: Iterable[Stage], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Runs stages in order over named tensors; returns all named tensors, each probe under its site."""
    named = dict(tensors)
    for stage in stages:
        result = stage.module(*(named[spec.name] for spec in stage.inputs))
        values = result if isinstance(result, tuple) else (result,)
        outputs = {spec.name: value for spec, value in zip(stage.outputs, values, strict=True)}
        for site, output in stage.probes.items():
            named[site] = outputs.pop(output)
        named.update({name.removesuffix(OUT): value for name, value in outputs.items()})
    return named
