"""Compiled plans as Polygraphy's runners. Needs a GPU; nothing of a plan is opened before its hash is checked."""

from collections.abc import Mapping
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Graph, PlanEntry, PlanSet
from adacache_engines.bundle.shape_profiles import covers
from adacache_engines.bundle.tensors import NUMPY_DTYPES
from adacache_engines.contract.engine import Backend
from adacache_engines.errors import EngineError, OutOfRangeError, require
from adacache_engines.tensorrt.backend import TensorRT, TrtBackend
from adacache_engines.tensorrt.library import gpu_target, open_library
from adacache_engines.tensorrt.plans import check_plans, choose, find, resident_share
from adacache_tune.profiling.subjects import Subject, example, fed_dtype, narrow
from adacache_tune.profiling.targets import Layer

Arrays = Mapping[str, NDArray[np.generic]]


def _target(library: str) -> str:
    """Return the compute capability of the first GPU, such as ``8.9``.

    Raises:
        EngineError: there is no GPU.
    """
    target = gpu_target()
    if target is None:
        raise EngineError(
            f"{library} plans run on an NVIDIA GPU and none can be used here; profile on a machine that has one, or "
            "with --backend onnxruntime"
        )
    return target


class TrtTarget:
    """A bundle's plans on one of the two TensorRT libraries.

    Args:
        bundle: the opened bundle.
        chosen: the library, and its budget for weights. CUDA graphs are not recorded: engines are timed one by one.
        sizes: sizes of the dynamic axes.

    Raises:
        MissingDependencyError: the library, Polygraphy or CUDA's bindings are not installed.
        EngineError: there is no GPU, or no set of plans for it.
        BundleError: a plan is missing or was changed.
        OutOfRangeError: the plans were built for other sizes.
    """

    def __init__(self, bundle: Bundle, chosen: TensorRT, sizes: Mapping[str, int]) -> None:
        self._library = open_library(chosen.library)
        target = _target(chosen.library)
        _, self._plans = choose(bundle, self._library.name, self._library.version, target)
        self._profile = _profile(self._plans, sizes)
        check_plans(bundle, self._plans)
        self._bundle, self.on_gpu = bundle, True
        self._budget, self._resident = chosen.weight_budget, resident_share(bundle, self._plans, chosen.weight_budget)
        self.name = f"{chosen.library} {self._library.version}, compute capability {target}"

    def runner(self, subject: Subject, sizes: Mapping[str, int]) -> Any:
        return plan_runner(
            subject.graph, self._bundle.path(self._entry(subject).path).read_bytes, self._profile, self._resident
        )

    def layers(self, subject: Subject, sizes: Mapping[str, int], iterations: int) -> list[Layer]:
        """Return layers as the library reports them to its profiler, after a run that is not counted."""
        api: Any = self._library.api
        times: dict[str, list[float]] = {}

        class Profiler(api.IProfiler):  # type: ignore[misc]
            def __init__(self) -> None:
                api.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times.setdefault(layer_name, []).append(ms)

        profiler = Profiler()
        with self.runner(subject, sizes) as runner:
            runner.plan.context.profiler = profiler
            feed = example(subject.graph, sizes)
            for _ in range(1 + iterations):
                runner.infer(feed)
        return [Layer(name, "", median(values[-iterations:])) for name, values in times.items()]

    def plan_nbytes(self) -> int | None:
        return sum({entry.path: entry.nbytes for entry in self._plans.plans}.values())

    def backend(self) -> Backend:
        # stages are marked one by one, which a recorded graph of many could not show
        return TrtBackend(self._bundle, self._library, graphs=False, weight_budget=self._budget)

    def _entry(self, subject: Subject) -> PlanEntry:
        if subject.kind != "reuse":
            return find(self._plans, subject.name)
        blocks = [stage.graph.name for stage in self._bundle.manifest.stages if stage.block]
        return find(self._plans, blocks[0], "reuse")


def _profile(plans: PlanSet, sizes: Mapping[str, int]) -> int:
    """Return the index of the optimisation profile of the plans that covers these sizes.

    Raises:
        OutOfRangeError: no profile covers them.
    """
    misfits = []
    for index, (name, axes) in enumerate(plans.profiles.items()):
        if covers(axes, sizes):
            return index
        wrong = [
            f"{axis} {size}, built for {axes[axis][0]} to {axes[axis][2]}"
            for axis, size in sizes.items()
            if not covers(axes, {axis: size})
        ]
        misfits.append(f"profile {name}: {', '.join(wrong)}")
    raise OutOfRangeError(
        f"the bundle's {plans.library} plans were not built for this size ({'; '.join(misfits)}); "
        "choose another, or build plans with a --profile that covers it"
    )


def plan_runner(graph: Graph, read: Any, profile: int, resident: float = 1.0) -> Any:
    """Return a Polygraphy runner that takes and gives numpy arrays, bfloat16 as float32.

    ``TrtRunner`` inside it finds the inputs on the GPU and leaves the outputs there: its time is the plan's alone.

    Args:
        graph: the graph that the plan was built from.
        read: function that returns the plan's bytes.
        profile: index of the optimisation profile.
        resident: share of the plan's weights that stay on the GPU, 0 to 1.
    """
    base: Any = require("polygraphy.backend.base", "profile")
    trt, cuda = require("polygraphy.backend.trt", "profile"), require("polygraphy.cuda", "profile")
    common, types = require("polygraphy.common", "profile"), require("polygraphy.datatype", "profile").DataType

    class PlanRunner(base.BaseRunner):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="TrtRunner")
            share = 100 * resident if resident < 1 else None
            self.plan = trt.TrtRunner(
                trt.EngineFromBytes(read), optimization_profile=profile, weight_streaming_percent=share
            )

        def activate_impl(self) -> None:
            self.plan.activate()

        def get_input_metadata_impl(self) -> Any:
            metadata = common.TensorMetadata()
            known = self.plan.get_input_metadata(use_numpy_dtypes=False)
            for spec in graph.inputs:
                if spec.name in known:  # an input that carries no value may be optimised away
                    axes = [axis if isinstance(axis, int) else None for axis in spec.axes]
                    metadata.add(spec.name, dtype=types.from_dtype(fed_dtype(spec)), shape=axes)
            return metadata

        def infer_impl(self, feed_dict: Arrays) -> dict[str, NDArray[np.generic]]:
            dtypes = {spec.name: spec.dtype for spec in (*graph.inputs, *graph.outputs)}
            memory, views = [], {}
            try:
                for name, array in feed_dict.items():
                    data = np.ascontiguousarray(array.astype(NUMPY_DTYPES[dtypes[name]]))
                    memory.append(cuda.DeviceArray.raw((data.nbytes,)).copy_from(data.reshape(-1).view(np.uint8)))
                    kind = getattr(types, dtypes[name].upper())
                    views[name] = cuda.DeviceView(memory[-1].ptr, data.shape, kind)
                results = self.plan.infer(views, check_inputs=False, copy_outputs_to_host=False)
                self.inference_time = self.plan.last_inference_time()
                return {name: _fetch(cuda, types, view, NUMPY_DTYPES[dtypes[name]]) for name, view in results.items()}
            finally:
                for block in memory:
                    block.free()

        def deactivate_impl(self) -> None:
            self.plan.deactivate()

    return PlanRunner()


def _fetch(cuda: Any, types: Any, view: Any, dtype: np.dtype) -> NDArray[np.generic]:
    """Return a result from the GPU's memory, by its bytes: numpy has no bfloat16 that Polygraphy would know."""
    shape = tuple(view.shape)
    data = np.empty(int(np.prod(shape)) * dtype.itemsize, np.uint8)
    cuda.DeviceView(view.ptr, data.shape, types.UINT8).copy_to(data)
    return narrow(data.view(dtype).reshape(shape))
