"""A compiled plan as an engine, each of whose bindings is an execution context.

A context is made for one set of buffers: its profile, shapes and addresses are set once, and a call only enqueues.
"""

import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adacache_engines.bundle.manifest import Graph
from adacache_engines.contract.device import Buffer, Call
from adacache_engines.contract.engine import check_binding
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import EngineError
from adacache_engines.tensorrt.arena import Arena, Claim
from adacache_engines.tensorrt.library import InstalledLibrary

if TYPE_CHECKING:
    import tensorrt as trt

Shape = tuple[int, ...]


@contextmanager
def translated(library: InstalledLibrary, doing: str) -> Iterator[None]:
    """Raise the library's errors as the project's own, with what the library has logged."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        told = f"{error}: {library.complaints()}"
        raise EngineError(f"{library.name} {library.version} failed {doing}: {told}") from error


def done(library: InstalledLibrary, result: Any, doing: str) -> Any:
    """Return the result of a call of the library.

    Raises:
        EngineError: the library answered False or None; the message has what it logged.
    """
    if result is None or result is False:
        raise EngineError(f"{library.name} {library.version} failed {doing}: {library.complaints()}")
    return result


def _shape(dims: Any) -> Shape:
    return tuple(dims[index] for index in range(len(dims)))


@dataclass(frozen=True, eq=False)
class OpenedPlan:
    """A deserialised plan.

    Attributes:
        engine: the library's own engine.
        config: configuration of contexts; None = the library is TensorRT, which has none.
        lock: lock that is held while a context is made.
        workspaces: bytes of activations by shapes of the inputs, as far as they are known.
    """

    engine: "trt.ICudaEngine"
    config: Any
    lock: threading.Lock = field(default_factory=threading.Lock)
    workspaces: dict[object, int] = field(default_factory=dict)


class TrtEngine:
    """An engine that runs the plan of one graph.

    Args:
        graph: graph that the plan was built from.
        plan: the deserialised plan.
        library: library that runs it.
        device: device on whose stream it runs.
        arena: memory for activations, which engines share.
        profiles: names of the plan's optimisation profiles.

    Raises:
        EngineError: the plan's tensors or profiles are not the graph's.
    """

    def __init__(
        self,
        graph: Graph,
        plan: OpenedPlan,
        library: InstalledLibrary,
        device: CudaDevice,
        arena: Arena,
        profiles: tuple[str, ...],
    ) -> None:
        self.graph = graph
        self._plan, self._library, self._device = plan, library, device
        self._arena, self._profiles = arena, profiles
        with translated(library, f"asking the plan of {graph.name}"):
            self._tensors = self._check()

    def bind(self, tensors: Mapping[str, Buffer]) -> Call:
        """Make a context for these buffers, and return the call that enqueues it.

        Raises:
            EngineError: a name, dtype or shape is not the graph's, or no profile of the plan covers the shapes.
        """
        check_binding(self.graph, tensors)
        name = self.graph.name
        with translated(self._library, f"binding {name}"):
            context, need = self._context({spec.name: tensors[spec.name].shape for spec in self.graph.inputs})
            for spec in self.graph.outputs:
                shape = _shape(context.get_tensor_shape(spec.name))
                if shape != tensors[spec.name].shape:
                    raise EngineError(
                        f"engine {name} gives {spec.name} {shape}, but its buffer has {tensors[spec.name].shape}"
                    )
            for tensor in self._tensors:
                given = context.set_tensor_address(tensor, tensors[tensor].address)
                done(self._library, given, f"binding {tensor} of {name}")
        return _BoundContext(name, context, self._arena.claim(need), self._library, self._device, tensors)

    def workspace_nbytes(self, shapes: Mapping[str, Shape]) -> int:
        key = self._key(shapes)
        if key not in self._plan.workspaces:
            with translated(self._library, f"measuring {self.graph.name}"):
                context, _ = self._context(shapes)
            self._device.drop([context].clear, when_idle=True)  # its profile may be on the way
        return self._plan.workspaces[key]

    def _context(self, shapes: Mapping[str, Shape]) -> tuple["trt.IExecutionContext", int]:
        """Return a context for inputs of these shapes, and its activation memory in bytes."""
        profile, name, library = self._profile(shapes), self.graph.name, self._library
        self._device.use()
        engine, config = self._plan.engine, self._plan.config
        managed = library.api.ExecutionContextAllocationStrategy.USER_MANAGED
        with self._plan.lock:
            context = engine.create_execution_context(managed if config is None else config)
        done(library, context, f"making a context for {name}")
        with self._device.turn():
            chosen = context.set_optimization_profile_async(profile, self._device.stream)
        done(library, chosen, f"choosing profile {self._profiles[profile]} for {name}")
        for tensor, shape in shapes.items():
            if tensor in self._tensors:
                done(library, context.set_input_shape(tensor, shape), f"giving {tensor} of {name} the shape {shape}")
        unknown = context.infer_shapes()
        if unknown:
            raise EngineError(f"{library.name} {library.version} cannot infer {', '.join(unknown)} of {name}")
        need = self._need(context, profile)
        self._plan.workspaces[self._key(shapes)] = need
        return context, need

    def _need(self, context: "trt.IExecutionContext", profile: int) -> int:
        engine = self._plan.engine
        if engine.device_memory_size_v2 == 0:
            return 0
        # 0 may mean that it was asked in vain; and where any shape needs memory, none runs without
        need = context.update_device_memory_size_for_shapes() or engine.get_device_memory_size_for_profile_v2(profile)
        return int(need)

    def _key(self, shapes: Mapping[str, Shape]) -> object:
        return tuple(shapes[spec.name] for spec in self.graph.inputs)

    def _profile(self, shapes: Mapping[str, Shape]) -> int:
        """Return the index of the first profile that covers shapes of the inputs."""
        misfits = []
        for index, profile in enumerate(self._profiles):
            wrong = {}
            for spec in self.graph.inputs:
                if spec.name not in self._tensors or all(isinstance(axis, int) for axis in spec.axes):
                    continue
                ranges = self._plan.engine.get_tensor_profile_shape(spec.name, index)
                least, _, most = map(_shape, ranges)
                for axis, size, low, high in zip(spec.axes, shapes[spec.name], least, most, strict=True):
                    if not low <= size <= high:
                        wrong[axis] = f"{axis} {size}, allowed {low} to {high}"
            if not wrong:
                return index
            misfits.append(f"profile {profile}: " + ", ".join(wrong.values()))
        library = self._library.name
        raise EngineError(
            f"no profile of the {library} plans fits {self.graph.name}: {'; '.join(misfits)}; choose another size or "
            f"number of prompts, or build plans for it: adacache-export BUNDLE --backend {library} --profile ..."
        )

    def _check(self) -> tuple[str, ...]:
        """Return the names of the plan's tensors: the graph's, but for inputs whose values are not used."""
        engine, api = self._plan.engine, self._library.api
        modes = {api.TensorIOMode.INPUT: self.graph.inputs, api.TensorIOMode.OUTPUT: self.graph.outputs}
        specs = {(mode, spec.name): spec for mode, group in modes.items() for spec in group}
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        problems = []
        for name in names:
            spec = specs.get((engine.get_tensor_mode(name), name))
            if spec is None:
                problems.append(f"{name} is not a tensor of the graph")
            elif engine.get_tensor_dtype(name) != self._library.data_type(spec.dtype):
                problems.append(f"{name} is {engine.get_tensor_dtype(name)}, expected {spec.dtype}")
            elif engine.get_tensor_location(name) != api.TensorLocation.DEVICE:
                problems.append(f"{name} is read on the host: its values decide shapes")
        problems += [f"{spec.name} is missing" for spec in self.graph.outputs if spec.name not in names]
        if engine.num_optimization_profiles != len(self._profiles):
            problems.append(
                f"it has {engine.num_optimization_profiles} profiles, the manifest {', '.join(self._profiles)}"
            )
        if problems:
            raise EngineError(f"the plan of {self.graph.name} does not fit its graph: {'; '.join(problems)}")
        return tuple(names)


class _BoundContext:
    """A context with everything set, which is freed when the work that was enqueued on it is done."""

    def __init__(
        self,
        name: str,
        context: "trt.IExecutionContext",
        claim: Claim,
        library: InstalledLibrary,
        device: CudaDevice,
        tensors: Mapping[str, Buffer],
    ) -> None:
        self._name, self._claim, self._library, self._device = name, claim, library, device
        self._context, self._tensors = context, dict(tensors)
        self._ready = claim.nbytes == 0
        weakref.finalize(self, device.drop, [context].clear, when_idle=True)

    def __call__(self) -> None:
        with self._device.turn(), translated(self._library, f"running {self._name}"):
            if not self._ready:
                memory = self._claim.memory()
                self._context.set_device_memory(memory.address, memory.nbytes)
                self._ready = True
            if not self._context.execute_async_v3(self._device.stream):
                shapes = ", ".join(f"{name} {buffer.shape}" for name, buffer in self._tensors.items())
                raise EngineError(f"engine {self._name} failed on {shapes}: {self._library.complaints()}")
