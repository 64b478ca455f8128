"""Graphs of chunks that carry tensors from each chunk of a video to the next, in buffers of the device.

A VAE that is causal in time needs the last features of a chunk for the one that follows. Its graph takes them as
inputs and gives those for the next call as outputs, so that a video of any length is coded in bounded memory, with the
same result as in one piece. Nothing is copied: the buffers that one call writes are bound as inputs of another.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from adacache_engines.bundle.manifest import Graph
from adacache_engines.bundle.tensors import TensorSpec
from adacache_engines.contract.device import Buffer, Call
from adacache_engines.contract.engine import Backend, Engine
from adacache_runtime.samplers.update import Floats
from adacache_runtime.vae.graph import Shapes, Sizes, Step, VaeGraph, allocate, run, shapes

Bound = tuple[Mapping[str, Buffer], Call]


@dataclass
class _Tiles:
    """The tiles of one shape, and the sets of carried tensors that they share.

    There is one set more than tiles, or one alone where no chunk follows the first. A call reads the set that its tile
    wrote in the chunk before, s, and writes the one that became free last, s - 1; so as many bindings as sets are all
    that is ever needed.

    Attributes:
        count: number of tiles.
        sets: sets of carried tensors, each by the name of the input that takes a tensor.
        first: calls of the first chunk, one for each set that it writes.
        following: calls of later chunks by their shapes, one for each set that they read.
        calls: number of calls so far; they come chunk by chunk, and in a chunk tile by tile.
    """

    count: int
    sets: Sequence[Mapping[str, Buffer]]
    first: Sequence[Bound]
    following: dict[Shapes, list[Bound]] = field(default_factory=dict)
    calls: int = 0

    def turn(self) -> tuple[int, int]:
        """Return the number of the chunk that the next call belongs to, and of the set that it reads (or writes)."""
        chunk, tile = divmod(self.calls, self.count)
        self.calls += 1
        return chunk, (tile - max(chunk - 1, 0)) % len(self.sets)


class CarryingGraph:
    """A graph that carries tensors from chunk to chunk, and the graph of a video's first chunk.

    It codes one video: calls come chunk by chunk, and within each chunk tile by tile in the same order.
    """

    def __init__(self, step: Step, backend: Backend) -> None:
        """Load the engines and bind them at all sizes.

        Args:
            step: the graphs, and the sizes of the axes at which they are called.
            backend: the backend that runs them.

        Raises:
            EngineError: an engine cannot be loaded, or does not run at these sizes.
        """
        assert step.first is not None
        self.graph, self._first, self._backend = step.graph, step.first, backend
        self._carried = tuple(spec for spec in self.graph.inputs if spec.name in {*self.graph.carried.values()})
        self._tiles: dict[Shapes, _Tiles] = {}
        engine = backend.load(step.first)
        for sizes, count in _counted(step.first, step.first_at):
            sets = [allocate(self._carried, sizes, backend.device) for _ in range(count + 1 if step.at else 1)]
            first = self._bound(engine, sizes, [({}, one) for one in sets[:count]])
            self._tiles[shapes(self._carried, sizes)] = _Tiles(count, sets, first)
        if step.at:
            engine = backend.load(step.graph)
            for sizes, _ in _counted(step.graph, step.at):
                tiles = self._tiles[shapes(self._carried, sizes)]
                turns = [(one, tiles.sets[index - 1]) for index, one in enumerate(tiles.sets)]
                tiles.following[self._key(sizes)] = self._bound(engine, sizes, turns)

    def __call__(self, value: Floats, sizes: Sizes) -> list[Floats]:
        """Run the graph of the first chunk or of a later one on the next tile of a video.

        Args:
            value: the graph's first input.
            sizes: sizes of the dynamic axes, at which it is bound.

        Returns:
            The outputs that are not carried, in order; the arrays belong to the caller.
        """
        tiles = self._tiles[shapes(self._carried, sizes)]
        chunk, turn = tiles.turn()
        if chunk == 0:
            return run(self._first, *tiles.first[turn], value)
        return run(self.graph, *tiles.following[self._key(sizes)][turn], value)

    def _key(self, sizes: Sizes) -> Shapes:
        return shapes((*self.graph.inputs, *self.graph.outputs), sizes)

    def _bound(
        self, engine: Engine, sizes: Sizes, turns: Sequence[tuple[Mapping[str, Buffer], Mapping[str, Buffer]]]
    ) -> list[Bound]:
        """Bind a graph once for each pair of the set that it reads and the set that it writes; the rest is shared."""
        graph = engine.graph
        own = allocate(_not_carried(graph), sizes, self._backend.device)
        bound: list[Bound] = []
        for read, written in turns:
            buffers = {**own, **read, **{output: written[name] for output, name in graph.carried.items()}}
            bound.append((buffers, engine.bind(buffers)))
        return bound


def load_step(step: Step, backend: Backend) -> VaeGraph | CarryingGraph:
    """Load and bind the engines of a step.

    Raises:
        EngineError: an engine cannot be loaded, or does not run at these sizes.
    """
    return VaeGraph(step.graph, backend, step.at) if step.first is None else CarryingGraph(step, backend)


def _not_carried(graph: Graph) -> list[TensorSpec]:
    names = {*graph.carried, *graph.carried.values()}
    return [spec for spec in (*graph.inputs, *graph.outputs) if spec.name not in names]


def _counted(graph: Graph, at: Sequence[Sizes]) -> list[tuple[Sizes, int]]:
    """Return the different sizes among those of a graph's calls, each with their number."""
    specs = (*graph.inputs, *graph.outputs)
    counts = Counter(shapes(specs, sizes) for sizes in at)
    first = {shapes(specs, sizes): sizes for sizes in reversed(at)}
    return [(first[key], count) for key, count in counts.items()]
