"""Compile one ONNX graph into one plan.

Precision is the graph's own (strongly typed). Attention of half precision must become TensorRT's fused layer; the
layer has no kernels for float32 and for narrow heads, so there attention is written out before it is parsed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adacache_engines.bundle.manifest import Graph, Library
from adacache_engines.bundle.shape_profiles import ShapeProfile
from adacache_engines.errors import EngineError, InputError
from adacache_engines.passes.graph_pass import GraphPass, rewritten
from adacache_engines.passes.joint_sums import JOINT_SUMS
from adacache_engines.passes.written_out_attention import WRITTEN_OUT_ATTENTION
from adacache_engines.tensorrt.library import CURRENT, TARGETS, InstalledLibrary

if TYPE_CHECKING:
    import tensorrt as trt

PASSES = (JOINT_SUMS,)
UNFUSED_PASSES = (*PASSES, WRITTEN_OUT_ATTENTION)
NARROWEST_FUSED = 16  # width of a head: TensorRT-RTX 1.7 refuses 4, 8 and sometimes 12
USUAL_TARGETS = ("8.0", "8.6", "8.9", "12.0", "12.1")  # Ampere and newer


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build. A library refuses those that it does not have.

    Attributes:
        targets: compute capabilities to build for (TensorRT-RTX), or ``current`` alone for the GPU that is there, as
            TensorRT always does.
        workspace_mb: most activation memory that one engine may take; None = no limit.
        weight_streaming: weights may stay in host memory, as a budget at run time says; TensorRT-RTX does not record
            CUDA graphs of such plans.
        optimization_level: 0 to 5, how long TensorRT looks for faster kernels; None = its default.
        refit: build one plan for all blocks of a kind and put the others' weights in: fewer builds, but plans that may
            fold nothing of their weights (TensorRT).
    """

    targets: tuple[str, ...] = ()
    workspace_mb: int | None = None
    weight_streaming: bool = False
    optimization_level: int | None = None
    refit: bool = False


def check_options(library: Library, options: BuildOptions) -> None:
    """Check that a library has the options, and that they are in range.

    Raises:
        InputError: an option is out of range, or this library does not have it.
    """
    if library == "tensorrt-rtx":
        reasons = {
            "refit": "needs a GPU at build time, and a build takes less than a second there",
            "optimization_level": "has no effect there: kernels are compiled on the GPU that runs them",
        }
    else:
        reasons = {"targets": "is TensorRT-RTX's: TensorRT builds for the GPU of this machine"}
    refused = [f"--{name.replace('_', '-')} {why}" for name, why in reasons.items() if getattr(options, name)]
    if refused:
        raise InputError(f"{library} does not support: " + "; ".join(refused))
    unknown = [target for target in options.targets if target not in TARGETS]
    if unknown:
        raise InputError(f"target {', '.join(unknown)} is unknown; known: {', '.join(TARGETS)}")
    if CURRENT in options.targets and len(options.targets) > 1:
        raise InputError(f"target {CURRENT} stands alone; leave out the others")
    if options.workspace_mb is not None and options.workspace_mb < 1:
        raise InputError(f"workspace {options.workspace_mb} MB is not possible; choose at least 1")
    if options.optimization_level is not None and not 0 <= options.optimization_level <= 5:
        raise InputError(f"optimization level {options.optimization_level} is not possible; choose 0 to 5")


def build_plan(
    library: InstalledLibrary,
    path: Path,
    graph: Graph,
    profiles: Sequence[ShapeProfile],
    options: BuildOptions,
    fused: bool,
    timing_cache: Any = None,
    stopped: Callable[[], bool] = lambda: False,
) -> memoryview:
    """Build the plan of one graph, and return its content.

    Args:
        library: library that builds it.
        path: ONNX file, beside its external data.
        graph: manifest's entry of the graph, with its inputs and outputs.
        profiles: ranges of the dynamic axes; each becomes an optimisation profile, in this order.
        options: options that :func:`check_options` accepts.
        fused: whether attention must become TensorRT's fused layer; it is written out if not, or if a head is
            narrower than its kernels.
        timing_cache: TensorRT's timing cache, which builds share; None = none.
        stopped: function that is called now and then; the build ends soon after it returns True.

    Raises:
        EngineError: the graph cannot be parsed or built, has other tensors than ``graph``, an attention that was not
            fused, or the build was stopped.
        MissingDependencyError: onnx is not installed and attention must be written out.
    """
    api = library.api
    builder: trt.Builder = api.Builder(library.logger)
    network = _network(library, builder, path, graph, PASSES if fused else UNFUSED_PASSES)
    if fused and _narrowest_head(api, network) < NARROWEST_FUSED:
        fused, network = False, _network(library, builder, path, graph, UNFUSED_PASSES)
    _check_tensors(library, network, graph)
    if fused:
        _check_attention(api, network, graph.name)
    config = builder.create_builder_config()
    for ranges in profiles:
        if config.add_optimization_profile(_profile(api, builder, graph, ranges)) < 0:
            raise EngineError(f"{library.name} refuses the profile {ranges} for {graph.name}: {library.complaints()}")
    _set(api, config, library.name, options)
    if timing_cache is not None:
        config.set_timing_cache(timing_cache, ignore_mismatch=False)
    config.progress_monitor = _monitor(api, stopped)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        if stopped():
            library.complaints()
            raise EngineError(f"building the plan of {graph.name} was stopped")
        raise EngineError(f"{library.name} {library.version} cannot build {graph.name}: {library.complaints()}")
    library.errors.clear()
    return memoryview(plan)


def _typed(api: Any) -> int:
    """Return the flags of a strongly typed network; newer libraries know no other."""
    flag = getattr(api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _network(
    library: InstalledLibrary, builder: "trt.Builder", path: Path, graph: Graph, passes: Sequence[GraphPass]
) -> "trt.INetworkDefinition":
    network = builder.create_network(_typed(library.api))
    parser: trt.OnnxParser = library.api.OnnxParser(network, library.logger)
    model = rewritten(path, graph, passes, "trt-rtx")
    done = parser.parse(model, str(path)) if model else parser.parse_from_file(str(path))
    if not done:
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        told = [f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors]
        raise EngineError(
            f"{library.name} {library.version} cannot read {path}: {'; '.join(told) or library.complaints()}"
        )
    return network


def _narrowest_head(api: Any, network: "trt.INetworkDefinition") -> float:
    """Return the narrowest width of a head in the attentions that were read as fused layers."""
    kind = getattr(api.LayerType, "ATTENTION_INPUT", None)  # an older library takes attention apart
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    heads = [layer.get_input(0).shape for layer in layers if layer.type == kind]
    return min((shape[-1] for shape in heads), default=math.inf)


def _check_tensors(library: InstalledLibrary, network: "trt.INetworkDefinition", graph: Graph) -> None:
    """Check that the library reads the manifest's inputs and outputs.

    Raises:
        EngineError: the library reads other inputs or outputs than the manifest has.
    """
    ends = ((network.num_inputs, network.get_input), (network.num_outputs, network.get_output))
    read = {tensor.name: tensor.dtype for count, get in ends for tensor in map(get, range(count))}
    wanted = {spec.name: library.data_type(spec.dtype) for spec in (*graph.inputs, *graph.outputs)}
    if read != wanted:
        raise EngineError(f"{graph.name}: {library.name} reads the tensors {read}, the manifest has {wanted}")


def _check_attention(api: Any, network: "trt.INetworkDefinition", name: str) -> None:
    """Check that every attention has become a fused layer.

    Raises:
        EngineError: a softmax is left, so an attention was taken apart.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    left = [layer.name for layer in layers if layer.type == api.LayerType.SOFTMAX]
    if left:
        raise EngineError(
            f"{name}: these attentions did not become fused layers: {', '.join(left)}; they would be slow and write "
            "out all their scores: export with this version of adacache-export, or build with a newer TensorRT"
        )


def _profile(api: Any, builder: "trt.Builder", graph: Graph, ranges: ShapeProfile) -> "trt.IOptimizationProfile":
    profile = builder.create_optimization_profile()
    for spec in graph.inputs:
        least, usual, most = (
            api.Dims(spec.shape({axis: size[end] for axis, size in ranges.items()})) for end in range(3)
        )
        profile.set_shape(spec.name, least, usual, most)
    return profile


def _set(api: Any, config: "trt.IBuilderConfig", library: Library, options: BuildOptions) -> None:
    if library == "tensorrt-rtx":
        targets = options.targets or USUAL_TARGETS
        rtx: Any = config  # the other library has no targets
        rtx.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            rtx.set_compute_capability(getattr(api.ComputeCapability, TARGETS[target]), index)
    flags, previews = api.BuilderFlag, api.PreviewFeature
    # contexts get their memory from the arena; TensorRT-RTX records CUDA graphs only where it knows so from the start,
    # and not with weights in host memory
    if hasattr(flags, "REQUIRE_USER_ALLOCATION") and not options.weight_streaming:
        config.set_flag(flags.REQUIRE_USER_ALLOCATION)
    # else TensorRT wants the memory of a profile's largest sizes at all sizes
    if hasattr(previews, "RUNTIME_ACTIVATION_RESIZE_10_10"):
        config.set_preview_feature(previews.RUNTIME_ACTIVATION_RESIZE_10_10, True)
    config.max_aux_streams = 0  # all work of a device is in one order; else each plan forks and joins four streams
    config.clear_flag(flags.TF32)  # float32 products have float32's precision, here as elsewhere
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if options.weight_streaming:
        config.set_flag(api.BuilderFlag.WEIGHT_STREAMING)
    if options.refit:
        config.set_flag(flags.REFIT)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level


def _monitor(api: Any, stopped: Callable[[], bool]) -> Any:
    class Monitor(api.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            pass

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            return not stopped()

    return Monitor()
