"""A stage: the piece of a model that becomes one graph, and how stages run one after another in torch."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from torch import Tensor, nn

from adacache_engines.bundle.manifest import IMAGE_STATES, Expert, ExportGranularity, Role, Term
from adacache_engines.bundle.signals import Space
from adacache_engines.bundle.tensors import DType, TensorSpec
from adacache_export.costs import TOKENS, Counted
from adacache_export.families.description import MODULATED as MODULATED
from adacache_export.families.residual_block import Parts, ResidualBlock, sites_of
from adacache_runtime.caching.policy import TIME, TIME_MODULATION

WITHIN_FRAMES = ("patch_frames",)  # the independent axes of a stage that mixes the tokens of a frame
# sites at which a model may show what it makes of the timestep; each is a space of signals by itself
OF_TIMESTEP = (TIME, TIME_MODULATION)
OUT = "_out"  # the output "hidden_out" is the next stage's "hidden"


@dataclass(frozen=True)
class Stage:
    """A module that becomes one graph, with its place in the model.

    Attributes:
        name: a label for people: ``text``, ``embed``, ``spatial.00``, ..., ``final``.
        traced_as: name of the traced graph; stages that share it differ only in their weights, and are traced once.
        module: the module, which takes tensors in the order of ``inputs`` and returns them in that of ``outputs``.
        prefix: text before a parameter's name in the checkpoint's key.
        inputs, outputs: names, dtypes and axes of the tensors that the module takes and returns.
        probes: site (``temporal.13.attn``) -> the output that carries it.
        tolerance: largest error that the stage's engine may have; None = the precision's own.
        nodes: the graph's body in ONNX's textual form; None = the module is traced.
        independent_axes: axes along which the stage's work is independent; see
            :class:`adacache_engines.bundle.entries.Graph`.
        carried: outputs that the call for the next chunk of a video takes: name of the output -> name of the input.
        role: the stage's role in the transformer, see :class:`adacache_engines.bundle.stages.StageEntry`; None = the
            stage is arithmetic, or belongs to the text encoder or the VAE.
        per_generation: whether the stage runs once in a generation; else it runs in each call.
        kind, index, part: kind and number of the block that the stage is, or that it prepares, and the part of the
            block where the stage is not the whole block.
        expert: number of the transformer that the stage belongs to, where a model has several.
    """

    name: str
    traced_as: str
    module: nn.Module
    prefix: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    probes: Mapping[str, str] = field(default_factory=dict)
    tolerance: float | None = None
    nodes: str | None = None
    independent_axes: tuple[str, ...] = ()
    carried: Mapping[str, str] = field(default_factory=dict)
    role: Role | None = None
    per_generation: bool = False
    kind: str | None = None
    index: int | None = None
    part: str | None = None
    expert: int = 0

    @property
    def block(self) -> bool:
        """Whether the stage has the form hidden' = hidden + r(hidden, ...), so that its residual can be cached."""
        return self.role == "block"

    @property
    def flops(self) -> tuple[Term, ...]:
        """Floating-point operations of one call; empty where the module does not count them."""
        return self.module.flops() if isinstance(self.module, Counted) else ()

    def keys(self) -> dict[str, str]:
        """Return the key in the checkpoint of each parameter, by the parameter's name in the module."""
        return {name: self.prefix + name for name, _ in self.module.named_parameters()}


def hidden_of(stages: Iterable[Stage]) -> TensorSpec:
    """Return name, dtype and axes of the hidden state that blocks hand on."""
    return next(spec for stage in stages if stage.block for spec in stage.inputs if spec.name == "hidden")


def shown_of_timestep(stages: Iterable[Stage]) -> dict[Space, TensorSpec]:
    """Return name, dtype and axes of what the stages show of the timestep, by the space of signals."""
    shown = [(stage, space) for stage in stages for space in OF_TIMESTEP if space in stage.probes]
    return {space: spec for stage, space in shown for spec in stage.outputs if spec.name == stage.probes[space]}


def weight_shapes(stages: Iterable[Stage]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights that the stages load, by their keys in the checkpoint."""
    return {
        stage.prefix + name: tuple(parameter.shape)
        for stage in stages
        for name, parameter in stage.module.named_parameters()
    }


def tensor_specs(
    in_channels: int, out_channels: int, width: int, caption_channels: int, precision: DType
) -> dict[str, TensorSpec]:
    """Return the tensors that stages of all families exchange, by name.

    The tensors of the model's activations have its precision. The others are float32: latents, timesteps, modulation
    (B, 6, D) of the blocks, time (B, D) of the final layer, and captions as a text encoder gives them.
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
    """Make a block as one stage or, at module granularity, as one stage for each of its parts.

    Args:
        kind: kind of the block, such as ``spatial``.
        index: number of the block among those of its kind.
        parts: residual parts of the block, in order.
        make: function that makes a stage's module, from the stage's parts and the sites to probe.
        prefix: prefix of the block's tensors in the checkpoint.
        spec: the tensors that stages exchange, by name.
        sites: sites to probe, such as ``temporal.13.attn``; those of other blocks are ignored.
        granularity: ``block`` for one stage, ``module`` for one stage for each part.
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
                independent_axes=module.independent_axes(),
                role="block",
                kind=kind,
                index=index,
                part=some[0] if granularity == "module" else None,
            )
        )
    return made


def embed_stage(
    make: Callable[[bool], nn.Module],
    inputs: tuple[TensorSpec, ...],
    spec: Mapping[str, TensorSpec],
    sites: Collection[str],
    names: Iterable[str] = ("hidden", "modulation", "time"),
    site: str = MODULATED,
    of_timestep: Mapping[str, TensorSpec] = MappingProxyType({}),
) -> Stage:
    """Make the stage that turns latents into the hidden state.

    Args:
        make: function that makes the stage's module; True asks for one that also returns the modulated input of the
            first block.
        inputs: tensors that the module takes.
        spec: the tensors that stages exchange, by name.
        sites: sites to probe; all but the site of the modulated input are ignored.
        names: names of the tensors that the module returns.
        site: site of the modulated input of the first block.
        of_timestep: what the module returns last, in this order, for policies that measure it, by site: see
            :data:`OF_TIMESTEP`.
    """
    probed = site in sites
    outputs = [spec[name] for name in names]
    shown = [spec["hidden"].model_copy(update={"name": "modulated"})] if probed else []
    probes = {site: "modulated"} if probed else {}
    probes |= {place: tensor.name for place, tensor in of_timestep.items()}
    given = (*outputs, *shown, *of_timestep.values())
    module = make(probed)
    return Stage("embed", "embed", module, "", inputs, given, probes, independent_axes=WITHIN_FRAMES, role="embed")


def text_stage(module: nn.Module, prefix: str, spec: Mapping[str, TensorSpec]) -> Stage:
    """Make the stage that projects captions, once in a generation."""
    return _projecting_stage("text", module, prefix, spec["captions"], spec)


def image_stage(module: nn.Module, prefix: str, spec: Mapping[str, TensorSpec]) -> Stage:
    """Make the stage that projects states of an image, once in a generation."""
    return _projecting_stage("image", module, prefix, spec[IMAGE_STATES], spec)


def _projecting_stage(
    role: Literal["text", "image"], module: nn.Module, prefix: str, given: TensorSpec, spec: Mapping[str, TensorSpec]
) -> Stage:
    """Make a stage that projects what an encoder gives to a tensor with the name of its role, and of its axis."""
    return Stage(
        role,
        role,
        module,
        prefix,
        (given,),
        (spec[role],),
        independent_axes=(role,),
        role=role,
        per_generation=True,
    )


def preparing_stage(
    role: Literal["text", "image"],
    kind: str,
    index: int,
    module: nn.Module,
    prefix: str,
    outputs: tuple[TensorSpec, ...],
    spec: Mapping[str, TensorSpec],
) -> Stage:
    """Make the stage that makes of the text or the image what one block takes, once in a generation.

    Args:
        role: what the stage takes: the projected text, or the projected states of the image.
        kind, index: kind and number of the block.
        module: module that takes what is projected.
        prefix: prefix of the module's tensors in the checkpoint.
        outputs: tensors that the module returns; the block's stages take them by these names.
        spec: the tensors that stages exchange, by name.
    """
    return Stage(
        f"{kind}.{index:02d}.{role}",
        f"{kind}.{role}",
        module,
        prefix,
        (spec[role],),
        outputs,
        independent_axes=(role,),
        role=role,
        per_generation=True,
        kind=kind,
        index=index,
    )


def final_stage(
    module: nn.Module, prefix: str, inputs: tuple[TensorSpec, ...], spec: Mapping[str, TensorSpec]
) -> Stage:
    """Make the stage that turns the hidden state into a prediction; ``inputs`` are the tensors that it takes."""
    given = (spec["prediction"],)
    return Stage("final", "final", module, prefix, inputs, given, independent_axes=WITHIN_FRAMES, role="final")


def positions_stage(module: nn.Module, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Stage:
    """Make the stage that gives tables of positions, which depend on sizes only, once in a generation."""
    return Stage("positions", "positions", module, "", inputs, outputs, role="positions", per_generation=True)


def of_experts(stages: Sequence[Stage], experts: Sequence[Expert]) -> list[Stage]:
    """Return the stages of all transformers of a model, each of which has ``stages`` with weights of its own.

    Where there are several, an expert's name begins the names of its stages, and the keys of its weights.
    """
    return [
        replace(stage, name=prefix + stage.name, prefix=prefix + stage.prefix, expert=index)
        for index, prefix in enumerate(key_prefixes(experts))
        for stage in stages
    ]


def key_prefixes(experts: Sequence[Expert]) -> tuple[str, ...]:
    """Return the prefixes of the stages' names and weights' keys of each transformer; a single one has none."""
    return tuple(f"{expert.name}." for expert in experts) if len(experts) > 1 else ("",)


def run_stages(stages: Iterable[Stage], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run stages in order over named tensors; return all named tensors, each probe under its site.

    A tensor that prepares one block alone has the kind and the number of the block before its name.
    """
    named = dict(tensors)
    for stage in stages:
        place = "" if stage.kind is None else f"{stage.kind}.{stage.index}."
        given = (place + spec.name if place + spec.name in named else spec.name for spec in stage.inputs)
        result = stage.module(*(named[name] for name in given))
        values = result if isinstance(result, tuple) else (result,)
        if place and not stage.block:
            named.update({place + spec.name: value for spec, value in zip(stage.outputs, values, strict=True)})
            continue
        outputs = {spec.name: value for spec, value in zip(stage.outputs, values, strict=True)}
        for site, output in stage.probes.items():
            named[site] = outputs.pop(output)
        named.update({name.removesuffix(OUT): value for name, value in outputs.items()})
    return named
