"""What a plan of the faked TensorRT says: its graph, its profiles, and the memory that it needs."""

import math
from collections.abc import Sequence
from typing import Any

from adacache_engines.bundle.manifest import Graph
from adacache_engines.bundle.tensors import NUMPY_DTYPES, TensorSpec
from tests.helpers.gpu.fake_tensorrt.names import Dims

MAGIC = "a plan"
SCRATCH = 16  # bytes of activation memory beside these, for each byte of a plan's first input
LEAST = 512  # bytes of activation memory that a plan takes for inputs of any size


class Contents:
    """The contents of a plan, which its engine and its contexts know."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.inputs = Graph.model_validate(plan["graph"]).inputs
        self.outputs = Graph.model_validate(plan["graph"]).outputs
        self.specs: dict[str, TensorSpec] = {spec.name: spec for spec in (*self.inputs, *self.outputs)}

    def profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        ranges = self.plan["profiles"][profile_index]
        return [Dims(self.specs[name].shape({axis: r[end] for axis, r in ranges.items()})) for end in range(3)]

    def need(self, shapes: Sequence[tuple[int, ...]]) -> int:
        if not self.plan["scratch"]:
            return 0
        item = NUMPY_DTYPES[self.inputs[0].dtype].itemsize
        return LEAST + int(self.plan["scratch"]) * math.prod(shapes[0]) * item
