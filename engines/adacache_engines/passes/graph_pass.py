"""Rewrites of ONNX graphs: how one is declared, and how several are applied to the file of a graph.

The file stays as it is: a rewritten graph lives in memory, and its external data stay where they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adacache_engines.bundle.manifest import Graph
from adacache_engines.errors import EngineError, MissingDependencyError, require


@dataclass(frozen=True)
class GraphPass:
    """A rewrite of a graph.

    Attributes:
        name: name of the pass, for error messages.
        needs: function of the manifest's entry and the file's bytes: whether the graph may have what the pass
            replaces. It is cheap, and needs no onnx.
        rewrite: function from an ``onnx.ModelProto``, which it may change, to the rewritten one; None = there was
            nothing to replace.
        left: function of the rewritten model: names of nodes that the pass should have replaced and did not.
        required: whether the backend cannot run such a graph without the pass. One that is not required is left out
            where onnx is not installed.
    """

    name: str
    needs: Callable[[Graph, bytes], bool]
    rewrite: Callable[[Any], Any | None]
    left: Callable[[Any], Sequence[str]]
    required: bool


def rewritten(path: Path, graph: Graph, passes: Sequence[GraphPass], extra: str) -> bytes | None:
    """Apply passes, one after another, to the graph in a file.

    Args:
        path: ONNX file of the graph.
        graph: the graph's entry in the manifest.
        passes: passes in the order in which they are applied.
        extra: extra of this project that brings onnx for the backend.

    Returns:
        The rewritten model, serialised; None = no pass found anything to replace, so the file can be used as it is.

    Raises:
        MissingDependencyError: onnx is not installed and a pass is required.
        EngineError: a pass left what it should have replaced.
    """
    content = path.read_bytes()
    wanted = [each for each in passes if each.needs(graph, content)]
    if not wanted:
        return None
    try:
        onnx = require("onnx", extra)
    except MissingDependencyError:
        if any(each.required for each in wanted):
            raise
        return None
    model, changed = onnx.load_from_string(content), False
    for each in wanted:
        made = each.rewrite(model)
        if made is None:
            continue
        left = each.left(made)
        if left:
            raise EngineError(f"the pass {each.name} did not replace {', '.join(left)} in {path}; report this graph")
        model, changed = made, True
    return bytes(model.SerializeToString()) if changed else None


def add_integers(onnx: Any, graph: Any, name: str, values: Sequence[int]) -> str:
    """Add a constant (n,) int64, such as a shape, to an ``onnx.GraphProto`` and return its name."""
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
    return name
