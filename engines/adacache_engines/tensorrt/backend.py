"""TensorRT and TensorRT-RTX as backends: what can be chosen, and how they load a bundle's plans.

Contexts have no memory of their own for activations; all contexts of a backend share one arena.
"""

import mmap
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Graph, Library, PlanEntry, PlanSet
from adacache_engines.contract.options import megabytes, option
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.cuda.graphs import SWITCH_OFF
from adacache_engines.errors import EngineError, InputError, require
from adacache_engines.tensorrt.arena import Arena
from adacache_engines.tensorrt.contexts import OpenedPlan
from adacache_engines.tensorrt.engine import TrtEngine, done, translated
from adacache_engines.tensorrt.kernel_cache import RuntimeCache
from adacache_engines.tensorrt.library import EXTRAS, LIBRARIES, InstalledLibrary, open_library
from adacache_engines.tensorrt.plans import ENGINES, check_plans, choose, find, remedy, resident_share

if TYPE_CHECKING:
    import tensorrt as trt

CUDA = "cuda.bindings.runtime"
RUNTIME_CACHE = "runtime.cache"
UNSUPPORTED = "UNSUPPORTED_CC"  # the library's name of a compute capability that a plan was not built for


@dataclass(frozen=True)
class TensorRT:
    """TensorRT or TensorRT-RTX on an NVIDIA GPU. It needs plans that ``adacache-export --backend`` has compiled.

    Attributes:
        library: ``tensorrt`` or ``tensorrt-rtx``, whichever compiled the plans.
        cuda_graphs: whether sequences of engines are recorded as CUDA graphs and replayed.
        weight_budget: bytes of GPU memory for weights, 0 or more; the others stay in host memory and are copied in
            when an engine runs. None = all weights stay on the GPU.

    Raises:
        InputError: the library is unknown, or the budget is negative.
    """

    library: Library = "tensorrt"
    cuda_graphs: bool = option(True, "record sequences of engines as CUDA graphs and replay them (default: yes)")
    weight_budget: int | None = option(
        None, "megabytes of GPU memory that weights may take (default: as many as all weights need)", "MB", megabytes
    )

    def __post_init__(self) -> None:
        if self.library not in LIBRARIES:
            raise InputError(f"library {self.library!r} is unknown; known: {', '.join(LIBRARIES)}")
        if self.weight_budget is not None and self.weight_budget < 0:
            raise InputError(f"a weight budget of {self.weight_budget} bytes is not possible; give 0 or more")

    def open(self, bundle: Bundle) -> "TrtBackend":
        """Open the library on a bundle's plans; raises what :class:`TrtBackend` and ``open_library`` raise."""
        library = open_library(self.library)
        return TrtBackend(bundle, library, graphs=self.cuda_graphs, weight_budget=self.weight_budget)


class TrtBackend:
    """TensorRT or TensorRT-RTX, opened on a bundle's plans.

    Args:
        bundle: the opened bundle.
        library: the library that built the plans, in the same version.
        device: device that runs the plans; None = the first GPU.
        graphs: whether the first GPU records CUDA graphs, where ``device`` is None.
        weight_budget: bytes of device memory for all weights; the others stay in host memory and are copied in when an
            engine runs. None = all of them on the device.
        progress: gets numbers of bytes while the plans are checked.
        target: compute capability whose plans are taken; None = the GPU's own. The library may refuse plans for
            another, or fail; this finds out whether it runs on a GPU that it does not name.

    Raises:
        MissingDependencyError: cuda-bindings is not installed.
        EngineError: there is no GPU, the bundle has no plans for it and this library, or they were not built for
            weights in host memory.
        BundleError: a plan is missing or was changed; nothing of it has been opened.
    """

    def __init__(
        self,
        bundle: Bundle,
        library: InstalledLibrary,
        device: CudaDevice | None = None,
        graphs: bool = True,
        weight_budget: int | None = None,
        progress: Callable[[int], None] = lambda _: None,
        target: str | None = None,
    ) -> None:
        if device is None:
            device = CudaDevice(api=require(CUDA, EXTRAS[library.name]), graphs=graphs)
        self.device = device
        self._bundle, self._library = bundle, library
        self._own = own = device.compute_capability()
        folder, self._set = choose(bundle, library.name, library.version, target or own)
        streaming = bool(self._set.options.get("weight_streaming"))
        if device.graphs and streaming and library.name == "tensorrt-rtx":
            raise EngineError(
                f"TensorRT-RTX cannot record CUDA graphs of plans whose weights may stay in host memory: {SWITCH_OFF}; "
                f"or build other plans with: adacache-export {bundle.folder} --backend tensorrt-rtx --force"
            )
        check_plans(bundle, self._set, progress)
        self._resident = resident_share(bundle, self._set, weight_budget)
        self.name = f"{library.name} {library.version} on compute capability {own}"
        if target not in (None, own):
            self.name += f" with plans for {target}"
        self._arena = Arena(device)
        with translated(library, "starting"):
            self._runtime: trt.Runtime = done(library, library.api.Runtime(library.logger), "starting")
        self._loading = threading.Lock()
        self._plans: weakref.WeakValueDictionary[str, OpenedPlan] = weakref.WeakValueDictionary()
        self._cache = RuntimeCache(bundle.folder / ENGINES / folder / RUNTIME_CACHE, library)
        weakref.finalize(self, self._cache.save)

    @property
    def plans(self) -> PlanSet:
        """The bundle's set of plans that is in use."""
        return self._set

    @property
    def contexts(self) -> int:
        """Number of execution contexts that somebody uses now; the library does not tell what memory each takes."""
        return sum(len(plan.contexts) for plan in list(self._plans.values()))

    def weights_nbytes(self, graphs: Sequence[Graph]) -> int:
        entries = {entry.path: entry.nbytes for entry in map(self._entry, graphs)}
        return round(self._resident * sum(entries.values()))

    def load(self, graph: Graph) -> TrtEngine:
        path = self._entry(graph).path
        with self._loading:
            plan = self._plans.get(path)
            if plan is None:
                plan = self._plans[path] = self._open(path)
        return TrtEngine(graph, plan, self._library, self.device, self._arena, tuple(self._set.profiles))

    def close(self) -> None:
        """Save the compiled kernels; engines and contexts are freed with their holders."""
        self._cache.save()

    def _entry(self, graph: Graph) -> PlanEntry:
        """Return the graph's plan; that of ``add`` is the plan of all blocks' reuse variant."""
        for entry in self._set.plans:
            if entry.graph == graph.name:
                return entry
        return find(self._set, graph.name)

    def _open(self, path: str) -> OpenedPlan:
        library = self._library
        self.device.use()
        with (
            self._bundle.reading(path) as file,
            translated(library, f"opening {file}"),
            file.open("rb") as handle,
            mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            self._check_validity(content, path)
            engine = done(library, self._runtime.deserialize_cuda_engine(content), f"opening {file}")
            if self._resident < 1:  # before the engine has contexts
                engine.weight_streaming_budget_v2 = int(self._resident * engine.streamable_weights_size)
            held = self._config(engine) if library.name == "tensorrt-rtx" else (None, None)
            return OpenedPlan(library, self.device, self._runtime, engine, *held)

    def _check_validity(self, content: mmap.mmap, path: str) -> None:
        """Ask the library by the head of a plan whether it runs here; TensorRT cannot be asked, and opens it or not.

        Raises:
            EngineError: it does not; the message names the GPU, what the plan was built for, and what to do.
        """
        library, runtime = self._library, self._runtime
        ask = getattr(runtime, "get_engine_validity", None)
        if ask is None:
            return
        validity, flags = ask(content)
        if validity != library.api.EngineValidity.INVALID:
            return
        kinds = library.api.EngineInvalidityDiagnostics.__members__.items()
        reasons = [name for name, kind in kinds if int(flags) & int(kind)]
        wanted = None if self._own in self._set.targets and UNSUPPORTED not in reasons else self._own
        raise EngineError(
            f"{library.name} {library.version} refuses {path} on this GPU, {self.device.gpu_name()} with compute "
            f"capability {self._own} ({', '.join(reasons) or library.complaints()}); it was built for "
            f"{', '.join(self._set.targets)}; {remedy(self._bundle, library.name, library.version, wanted)}"
        )

    def _config(self, engine: Any) -> tuple[Any, Any]:
        """Return the runtime cache, and the configuration with which TensorRT-RTX makes contexts of an engine."""
        api = self._library.api
        config = done(self._library, engine.create_runtime_config(), "configuring an engine")
        config.set_execution_context_allocation_strategy(api.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.cuda_graph_strategy = api.CudaGraphStrategy.DISABLED  # the device records graphs, of many engines each
        # else a graph could hold for ever the slow kernel that runs until the right one is compiled
        config.dynamic_shapes_kernel_specialization_strategy = api.DynamicShapesKernelSpecializationStrategy.EAGER
        return self._cache.attach(config), config
