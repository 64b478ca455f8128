"""A compiled plan as an engine.

All that depends on shapes is set once, when the first buffers of these shapes are bound; a call only enqueues.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from adacache_engines.bundle.manifest import Graph
from adacache_engines.contract.device import Buffer, Call
from adacache_engines.contract.engine import check_binding
from adacache_engines.contract.staging import staged
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import EngineError
from adacache_engines.tensorrt.arena import Arena, Claim
from adacache_engines.tensorrt.contexts import Context, OpenedPlan, Shapes
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
        """Return the call that enqueues the engine on these buffers.

        Raises:
            EngineError: a name, dtype or shape is not the graph's, or no profile of the plan covers the shapes.
        """
        check_binding(self.graph, tensors)
        name = self.graph.name
        with translated(self._library, f"binding {name}"):
            context = self._context({spec.name: tensors[spec.name].shape for spec in self.graph.inputs})
            for spec in self.graph.outputs:
                shape = _shape(context.context.get_tensor_shape(spec.name))
                if shape != tensors[spec.name].shape:
                    raise EngineError(
                        f"engine {name} gives {spec.name} {shape}, but its buffer has {tensors[spec.name].shape}"
                    )
        offsets, nbytes = staged(self.graph, tensors, context.nbytes)
        used = {tensor: tensors[tensor] for tensor in self._tensors}
        outputs = {spec.name for spec in self.graph.outputs}
        claim = self._arena.claim(nbytes)
        return _BoundCall(name, context, claim, self._library, self._device, used, outputs, offsets)

    def workspace_nbytes(self, shapes: Mapping[str, Shape]) -> int:
        key = self._key(shapes)
        if key not in self._plan.workspaces:
            with translated(self._library, f"measuring {self.graph.name}"):
                self._context(shapes)
        return self._plan.workspaces[key]

    def _context(self, shapes: Mapping[str, Shape]) -> Context:
        """Return the context for inputs of these shapes."""
        key, plan = self._key(shapes), self._plan
        with plan.lock:
            context = plan.contexts.get(key)
            if context is None:
                context = self._new_context(shapes)
                plan.workspaces[key] = context.nbytes
                plan.contexts[key] = context
        return context

    def _new_context(self, shapes: Mapping[str, Shape]) -> Context:
        profile, name, library = self._profile(shapes), self.graph.name, self._library
        self._device.use()
        engine, config = self._plan.engine, self._plan.config
        managed = library.api.ExecutionContextAllocationStrategy.USER_MANAGED
        context = engine.create_execution_context(managed if config is None else config)
        made = Context(self._plan, self._device, done(library, context, f"making a context for {name}"))
        with self._device.turn():
            chosen = context.set_optimization_profile_async(profile, self._device.stream)
        done(library, chosen, f"choosing profile {self._profiles[profile]} for {name}")
        for tensor, shape in shapes.items():
            if tensor in self._tensors:
                done(library, context.set_input_shape(tensor, shape), f"giving {tensor} of {name} the shape {shape}")
        unknown = context.infer_shapes()
        if unknown:
            raise EngineError(f"{library.name} {library.version} cannot infer {', '.join(unknown)} of {name}")
        made.nbytes = self._need(context, profile)
        return made

    def _need(self, context: "trt.IExecutionContext", profile: int) -> int:
        engine = self._plan.engine
        if engine.device_memory_size_v2 == 0:
            return 0
        # 0 may mean that it was asked in vain; and where any shape needs memory, none runs without
        need = context.update_device_memory_size_for_shapes() or engine.get_device_memory_size_for_profile_v2(profile)
        return int(need)

    def _key(self, shapes: Mapping[str, Shape]) -> Shapes:
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


class _BoundCall:
    """A call that enqueues an engine on certain buffers, which it keeps alive.

    A tensor that is not aligned is copied into the workspace before the engine reads it, or out of it afterwards.
    """

    def __init__(
        self,
        name: str,
        context: Context,
        claim: Claim,
        library: InstalledLibrary,
        device: CudaDevice,
        tensors: Mapping[str, Buffer],
        outputs: Collection[str],
        offsets: Mapping[str, int],
    ) -> None:
        self._name, self._context, self._claim = name, context, claim
        self._library, self._device = library, device
        self._tensors, self._outputs, self._offsets = tensors, outputs, offsets
        self._memory: int | None = None
        self._addresses: dict[str, int] = {}
        self._before: list[tuple[int, int, int]] = []  # copies: to, from, bytes
        self._after: list[tuple[int, int, int]] = []

    def __call__(self) -> None:
        name, context, library, device = self._name, self._context, self._library, self._device
        with device.turn(), translated(library, f"running {name}"):
            if device.is_recording and not context.capturable:
                raise EngineError(f"{library.name} {library.version} cannot run engine {name} in a recording")
            if not self._addresses:
                self._place()
            for copy in self._before:
                device.enqueue_copy(*copy, "DeviceToDevice")
            done(library, context.take(self._addresses, self._memory), f"binding {name}")
            if not context.run(device.stream):
                shapes = ", ".join(f"{tensor} {buffer.shape}" for tensor, buffer in self._tensors.items())
                raise EngineError(f"engine {name} failed on {shapes}: {library.complaints()}")
            for copy in self._after:
                device.enqueue_copy(*copy, "DeviceToDevice")

    def _place(self) -> None:
        """Take memory for activations and copies, and find the address of each tensor."""
        start = self._claim.memory().address if self._claim.nbytes else 0
        self._memory = start if self._context.nbytes else None
        self._addresses = {tensor: buffer.address for tensor, buffer in self._tensors.items()}
        for tensor, offset in self._offsets.items():
            if tensor not in self._tensors:
                continue
            buffer, copy = self._tensors[tensor], start + offset
            self._addresses[tensor] = copy
            if tensor in self._outputs:
                self._after.append((buffer.address, copy, buffer.nbytes))
            else:
                self._before.append((copy, buffer.address, buffer.nbytes))
