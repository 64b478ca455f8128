"""Checks of a manifest as a whole: what one entry names, another one has.

A manifest without stages, arithmetic and signals describes parts alone, such as a VAE; any other one a whole model.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from adacache_engines.bundle.conditioning import VIDEO_CONDITION, X_MASK, Conditioning
from adacache_engines.bundle.entries import Graph
from adacache_engines.bundle.image_rule import IMAGE, IMAGE_STATES
from adacache_engines.bundle.latent_space import LatentSpace
from adacache_engines.bundle.names import Name
from adacache_engines.bundle.sampling import PURE_NOISE, Expert, GuidanceRule
from adacache_engines.bundle.signals import SignalEntry
from adacache_engines.bundle.stages import StageEntry
from adacache_engines.bundle.tensors import DType, TensorSpec

HIDDEN, HIDDEN_OUT = "hidden", "hidden_out"
# inputs of stages that no stage makes
IN_PICTURES = {X_MASK, VIDEO_CONDITION, IMAGE_STATES}
CONDITIONS = {"captions", "text_mask", "latents", "timestep", "fps", "height", "width", *IN_PICTURES}
# dynamic axes of stages; arithmetic and signals also have the others
AXES = {"samples", "batch", "frames", "height", "width", "patch_frames", "tokens", "text", IMAGE}
SHARED_AXES = {*AXES, "calls", "pairs"}
ARITHMETIC = ("add", "blend", "subtract", "velocity", "guide", "combine", "select")  # graphs that all stages share

SIGNAL_INPUTS = {"cached", "new", "earlier", "later"}

Kind = tuple[DType, tuple[int | str, ...]]  # dtype and axes of a tensor


class Described(Protocol):
    """The part of a manifest that is checked here; ``text`` is its rule of texts."""

    @property
    def stages(self) -> tuple[StageEntry, ...]: ...

    @property
    def experts(self) -> tuple[Expert, ...]: ...

    @property
    def conditioning(self) -> Conditioning: ...

    @property
    def arithmetic(self) -> dict[Name, Graph]: ...

    @property
    def signals(self) -> dict[Name, SignalEntry]: ...

    @property
    def guidance(self) -> GuidanceRule: ...

    @property
    def latent(self) -> LatentSpace: ...

    @property
    def text(self) -> Any: ...

    def graphs(self) -> list[Graph]:
        """Return all graphs."""
        ...


def check_references(manifest: Described) -> None:
    """Check that a manifest is whole.

    Raises:
        ValueError: something is named that is not there, or is there twice; says what was expected.
    """
    twice = [name for name, count in Counter(graph.name for graph in manifest.graphs()).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]} is the name of several graphs; expected a name for each")
    for problem in _problems(manifest):
        raise ValueError(problem)


def _problems(manifest: Described) -> Iterator[str]:
    """Yield problems; whoever takes one asks for no more, since a check may rely on those before it."""
    yield from _of_text(manifest)
    yield from _of_vae(manifest)
    if manifest.stages or manifest.arithmetic or manifest.signals:
        for expert in range(len(manifest.experts)):
            yield from _of_stages([stage for stage in manifest.stages if stage.expert == expert], expert)
        yield from _of_arithmetic(manifest)
        yield from _of_experts(manifest.experts)
        yield from _of_signals(manifest)


def _of_arithmetic(manifest: Described) -> Iterator[str]:
    needed = {*ARITHMETIC} - ({"guide"} if len(manifest.guidance.order) == 1 else set())
    needed -= set() if manifest.conditioning == "kept-frames" else {"select"}
    for name in sorted(needed - {*manifest.arithmetic}):
        yield f"arithmetic has no {name}; expected {', '.join(sorted(needed))}"
    for name in sorted({*manifest.arithmetic} - {*ARITHMETIC}):
        yield f"arithmetic.{name} is unknown; expected some of {', '.join(ARITHMETIC)}"
    tensors = {spec.name: spec for stage in manifest.stages for spec in (*stage.graph.inputs, *stage.graph.outputs)}
    if HIDDEN not in tensors or "prediction" not in tensors:
        yield f"stages: none has the tensors {HIDDEN} and prediction; expected stages that make both"
        return
    expected = _arithmetic(tensors[HIDDEN], tensors["prediction"], manifest.latent.channels)
    for name, graph in manifest.arithmetic.items():
        for specs, wanted in zip((graph.inputs, graph.outputs), expected[name], strict=True):
            if {spec.name: (spec.dtype, spec.axes) for spec in specs} != wanted:
                shown = (TensorSpec(name=key, dtype=kind, axes=axes) for key, (kind, axes) in wanted.items())
                yield f"arithmetic.{name} has {_shown(specs)}; expected {_shown(shown)}"


def _arithmetic(
    hidden: TensorSpec, prediction: TensorSpec, channels: int
) -> Mapping[str, tuple[Mapping[str, Kind], Mapping[str, Kind]]]:
    """Return the inputs and the outputs of each graph that all stages share."""
    state, places = (hidden.dtype, hidden.axes), (channels, "frames", "height", "width")
    latents: Kind = ("float32", ("samples", *places))
    return {
        "add": ({HIDDEN: state, "residual": state}, {HIDDEN_OUT: state}),
        "blend": (
            {HIDDEN: state, "residuals": (state[0], ("calls", *state[1])), "weights": ("float32", ("calls",))},
            {HIDDEN_OUT: state},
        ),
        "subtract": ({"after": state, "before": state}, {"residual": state}),
        "velocity": ({"prediction": (prediction.dtype, ("samples", *prediction.axes[1:]))}, {"velocity": latents}),
        "guide": (
            {"prediction": (prediction.dtype, prediction.axes), "guidance": ("float32", (1,))},
            {"velocity": latents},
        ),
        "combine": (
            {
                "latents": latents,
                "history": ("float32", ("calls", *latents[1])),
                "scale": ("float32", ("samples",)),
                "weights": ("float32", ("calls", "samples")),
            },
            {"latents_out": latents, "magnitude": ("float32", ("samples",))},
        ),
        "select": (
            {"mask": ("bool", ("samples", "frames")), "new": latents, "latents": latents},
            {"latents_out": latents},
        ),
    }


def _of_signals(manifest: Described) -> Iterator[str]:
    for name, signal in manifest.signals.items():
        for space, graph in signal.graphs.items():
            where = f"signals.{name}.graphs.{space}"
            yield from _of_axes(where, graph, SHARED_AXES)
            inputs = {spec.name: spec for spec in graph.inputs}
            if "new" not in inputs or not {*inputs} <= SIGNAL_INPUTS:
                known = ", ".join(sorted(SIGNAL_INPUTS))
                yield f"{where} takes {_listed(graph.inputs)}; expected new, and no others than {known}"
                return
            compared = {spec.axes for name, spec in inputs.items() if name in ("new", "cached")}
            first = inputs["new"].axes[:1]
            if len(compared) > 1 or any((spec.dtype, spec.axes) != ("float32", first) for spec in graph.outputs):
                made = f"{_shown(inputs.values())} -> {_shown(graph.outputs)}"
                yield f"{where} makes {made}; expected float32 outputs ({first[0]})"


def _of_experts(experts: Iterable[Expert]) -> Iterator[str]:
    reached = 0.0
    for lowest, highest in sorted(expert.timesteps for expert in experts):
        if lowest > reached:
            break
        reached = max(reached, highest)
    if reached < PURE_NOISE:
        yield f"experts: none runs just above timestep {reached:g}; expected their ranges to cover 0 to {PURE_NOISE:g}"


def _of_stages(stages: list[StageEntry], expert: int) -> Iterator[str]:
    for role in ("embed", "block", "final"):
        if not any(stage.role == role and not stage.per_generation for stage in stages):
            yield f"stages: expert {expert} has no stage with the role {role} in each call; expected one or more"
    own = {stage.own_name(spec.name) for stage in stages if stage.prepares_block for spec in stage.graph.outputs}
    known: dict[str, tuple[str, TensorSpec]] = {}
    made: set[str] = {*CONDITIONS}
    for stage in _in_order(stages):
        graph, watched = stage.graph, {probe.output for probe in stage.probes.values()}
        where = f"stage {graph.name}"
        yield from _of_axes(where, graph, AXES)
        if any(axis not in AXES for term in stage.flops for axis in term.axes):
            yield f"{where}: flops has an axis that is none of {', '.join(sorted(AXES))}"
        for output in sorted(watched - _names(graph.outputs)):
            yield f"{where}: probes show {output}, which is no output; outputs are {_listed(graph.outputs)}"
        for name in sorted(_names(graph.inputs) - made):
            yield f"{where} takes {name}, which no stage makes before it; expected a condition or an output before it"
        if stage.block and (HIDDEN not in _names(graph.inputs) or HIDDEN_OUT not in _names(graph.outputs)):
            yield f"{where} is a block and has other tensors than it should; expected {HIDDEN} -> {HIDDEN_OUT}"
        for spec in (*graph.inputs, *graph.outputs):
            if spec.name in watched:
                continue
            name = HIDDEN if spec.name == HIDDEN_OUT else spec.name
            name = stage.own_name(name) if stage.own_name(name) in own else name
            other, first = known.setdefault(name, (where, spec))
            if (first.dtype, first.axes) != (spec.dtype, spec.axes):
                yield f"{where} has {spec}, and {other} has {first}; expected the same type and axes"
        made |= _names(graph.outputs) - watched
    if "prediction" not in made:
        yield f"stages: the final stage of expert {expert} makes no prediction; expected an output of that name"


def _in_order(stages: list[StageEntry]) -> list[StageEntry]:
    """Return stages as they run: those of a generation first; in each call positions, embedding, blocks, the end."""
    roles = ("positions", "embed", "block", "final")
    each_call = [[stage for stage in stages if stage.role == role and not stage.per_generation] for role in roles]
    return [*(stage for stage in stages if stage.per_generation), *(stage for some in each_call for stage in some)]


def _of_text(manifest: Described) -> Iterator[str]:
    stages = manifest.text.encoder_stages
    if stages and manifest.text.tokenizer is None:
        yield "text.tokenizer is missing; expected the path of the file that the text encoder needs"
    if stages and _names(stages[0].inputs) != {"tokens", "mask"}:
        yield f"text.encoder_stages.0 takes {_listed(stages[0].inputs)}; expected tokens and mask"
    held = {"tokens", "mask"}
    for index, graph in enumerate(stages):
        where = f"text.encoder_stages.{index}"
        yield from _of_axes(where, graph, {"batch", "text"})
        missing = sorted(_names(graph.inputs) - held)
        if missing:
            yield f"{where} takes {missing[0]}, which no graph before it makes; made are {', '.join(sorted(held))}"
        held |= {name.removesuffix("_out") if name == HIDDEN_OUT else name for name in _names(graph.outputs)}
    if stages and "captions" not in _names(stages[-1].outputs):
        yield "text.encoder_stages: the last one makes no captions; expected an output of that name"


def _of_vae(manifest: Described) -> Iterator[str]:
    latent = manifest.latent
    axes = {*latent.chunk_axes(1, 1, 1)}
    for field, graphs, firsts in (
        ("decoding", latent.decoding, latent.first_decoding),
        ("encoding", latent.encoding, latent.first_encoding),
    ):
        if firsts and len(firsts) != len(graphs):
            yield f"latent.first_{field} has {len(firsts)} graphs; expected none, or {len(graphs)} as {field} has"
        for index, graph in enumerate(graphs):
            yield from _of_axes(f"latent.{field}.{index}", graph, axes)
            yield from _of_carried(f"latent.{field}.{index}", graph, graph)
        for index, (first, graph) in enumerate(zip(firsts, graphs, strict=False)):
            yield from _of_axes(f"latent.first_{field}.{index}", first, axes)
            yield from _of_carried(f"latent.first_{field}.{index}", first, graph)
    if (latent.decoder not in ("none", "pixels")) != bool(latent.decoding):
        yield f"latent.decoder is {latent.decoder}, of {len(latent.decoding)} graphs; expected some, or none or pixels"


def _of_axes(where: str, graph: Graph, known: set[str]) -> Iterator[str]:
    tensors = (*graph.inputs, *graph.outputs)
    if not graph.inputs or not graph.outputs:
        yield f"{where}: graph {graph.name} has no inputs or no outputs; expected both"
    for name, count in Counter(spec.name for spec in tensors).items():
        if count > 1:
            yield f"{where}: graph {graph.name} has {count} tensors called {name}; expected a name for each"
    for spec in tensors:
        unknown = [axis for axis in spec.axes if axis not in known and (axis == 0 or isinstance(axis, str))]
        if unknown or not spec.axes:
            what = f"an axis {unknown[0]}" if unknown else "no axes"
            yield f"{where}: tensor {spec.name} has {what}; expected sizes, or some of {', '.join(sorted(known))}"


def _of_carried(where: str, graph: Graph, following: Graph) -> Iterator[str]:
    """Check that what a graph hands on is its own, and that the graph of the following chunk takes it."""
    for output, taken in graph.carried.items():
        if output not in _names(graph.outputs) or taken not in _names(following.inputs):
            yield f"{where}: carried hands on {output} as {taken}; expected an output, and an input of {following.name}"


def _names(specs: Iterable[TensorSpec]) -> set[str]:
    return {spec.name for spec in specs}


def _listed(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(spec.name for spec in specs)


def _shown(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(map(str, specs))
