"""A stage: the piece of a model that becomes one graph, and how stages run one after another in torch."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from adacache_engines.bundle.manifest import ExportGranularity, Term
from adacache_engines.bundle.tensors import DType, TensorSpec
from adacache_export.costs import TOKENS, Counted
from adacache_export.families.residual_block import Parts, ResidualBlock, sites_of

MODULATED = "spatial.0.modulated"  # the probe of the first block's input, which the embed stage shows
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
        tolerance: of its engine's error, where it is not that of the precision.
        nodes: the graph's body in ONNX's textual form, where it is written down; else the module is traced.
    """

    name: str
    kind: str
    module: nn.Module
    prefix: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    probes: Mapping[str, str] = field(default_factory=dict)
    block: bool = False
    tolerance: float | None = None
    nodes: str | None = None

    @property
    def flops(self) -> tuple[Term, ...] | None:
        """What one call computes; None where the module does not say."""
        return self.module.flops() if isinstance(self.module, Counted) else None

    def keys(self) -> dict[str, str]:
        """Parameter name of the module -> key in the checkpoint."""
        return {name: self.prefix + name for name, _ in self.module.named_parameters()}


def hidden_of(stages: Iterable[Stage]) -> TensorSpec:
    """Return name, dtype and axes of the hidden state between blocks."""
    return next(spec for stage in stages if stage.block for spec in stage.inputs if spec.name == "hidden")


def weight_shapes(stages: Iterable[Stage]) -> dict[str, tuple[int, ...]]:
    """Key in the checkpoint -> shape, of all weights that the stages load."""
    return {
        stage.prefix + name: tuple(parameter.shape)
        for stage in stages
        for name, parameter in stage.module.named_parameters()
    }


def tensor_specs(
    in_channels: int, out_channels: int, width: int, caption_channels: int, precision: DType
) -> dict[str, TensorSpec]:
    """The tensors that stages of all families exchange, by name. Those that carry the model's activations have its
    precision, the others are float32: latents, timesteps, modulation (B, 6, D) of the blocks, time (B, D) of the final
    layer, and captions as a text encoder gives them.
    """
    size = ("frames", "height", "width")
    kinds: dict[str, tuple[tuple[int | str, ...], DType]] = {
        "latents": (("batch", in_channels, *size), "float32"),
        "timestep": (("batch",), "float32"),
        "captions": (("batch", "text", caption_channels), "float32"),
        "text": (("batch", "text", width), precision),
        "text_mask": (("batch", "text"), "bool"),
        "hidden": ((*TOKENS, width), precision),
        "modulation": (("batch", 6, width), "float32"),
        "time": (("batch", width), "float32"),
        "prediction": (("batch", out_channels, *size), "float32"),
    }
    return {name: TensorSpec(name=name, dtype=dtype, axes=axes) for name, (axes, dtype) in kinds.items()}


def block_stages(
    kind: str,
    index: int,
    parts: Parts,
    make: Callable[[Parts, tuple[str, ...]], ResidualBlock],
    prefix: str,
    spec: Mapping[str, TensorSpec],
    sites: Collection[str],
    granularity: ExportGranularity,
) -> list[Stage]:
    """A block as one stage or, at module granularity, as one for each of its parts.

    Args:
        kind: such as ``spatial``.
        index: of the block.
        parts: of the block.
        make: the stage's module, of parts and with probes.
        prefix: of the block's tensors in the checkpoint.
        spec: of the tensors that stages exchange, by name.
        sites: that are to be probed, such as ``temporal.13.attn``; others than this block's are ignored.
        granularity: of the stages.
    """
    hidden, made = spec["hidden"], []
    for some in [parts] if granularity == "block" else [(part,) for part in parts]:
        here = tuple(site for site in sites_of(some) if f"{kind}.{index}.{site}" in sites)
        module = make(some, here)
        own = some if granularity == "module" else ()
        outputs = (hidden.model_copy(update={"name": name}) for name in (hidden.name + OUT, *here))
        made.append(
            Stage(
                ".".join([kind, f"{index:02d}", *own]),
                "+".join([".".join([kind, *own]), *here]),
                module,
                prefix,
                (hidden, *(spec[name] for name in module.conditions)),
                tuple(outputs),
                {f"{kind}.{index}.{site}": site for site in here},
                block=True,
            )
        )
    return made


def embed_stage(
    make: Callable[[bool], nn.Module],
    inputs: tuple[TensorSpec, ...],
    spec: Mapping[str, TensorSpec],
    sites: Collection[str],
    names: Iterable[str] = ("hidden", "modulation", "time"),
) -> Stage:
    """The ``embed`` stage; ``make`` its module, which gives the tensors of ``names``, and shows the first block's
    modulated input if that is probed.
    """
    probed = MODULATED in sites
    outputs = [spec[name] for name in names]
    shown = [spec["hidden"].model_copy(update={"name": "modulated"})] if probed else []
    probes = {MODULATED: "modulated"} if probed else {}
    return Stage("embed", "embed", make(probed), "", inputs, (*outputs, *shown), probes)


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
