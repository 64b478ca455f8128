"""Lets ONNX Runtime's CPU provider, which has no bfloat16 arithmetic, run bfloat16 graphs.

Every operator computes in float32 on bfloat16 inputs and its result is rounded to bfloat16, so values are those
of a device that accumulates in float32; only the speed is not.
"""

from pathlib import Path

from adacache_engines.errors import require


def widened(path: Path) -> bytes:
    """The graph in ``path`` with casts around every operator on bfloat16; external data stay where they are."""
    onnx = require("onnx", "cpu")
    model = onnx.load(str(path), load_external_data=False)
    graph, tensor = model.graph, onnx.TensorProto
    values = [*graph.input, *graph.output, *graph.value_info]
    narrow = {value.name for value in values if value.type.tensor_type.elem_type == tensor.BFLOAT16}
    narrow |= {value.name for value in graph.initializer if value.data_type == tensor.BFLOAT16}
    nodes, wide = [], {}

    def cast(source: str, target: str, to: int) -> None:
        nodes.append(onnx.helper.make_node("Cast", [source], [target], name=f"{target}/cast", to=to))

    for node in graph.node:
        if node.op_type in ("Cast", "Constant"):
            nodes.append(node)
            continue
        for index, name in enumerate(node.input):
            if name not in narrow:
                continue
            if name not in wide:
                wide[name] = f"{name}/wide"
                cast(name, wide[name], tensor.FLOAT)
            node.input[index] = wide[name]
        rounded = [name for name in node.output if name in narrow]
        for index, name in enumerate(node.output):
            if name in rounded:
                node.output[index] = f"{name}/exact"
        nodes.append(node)
        for name in rounded:
            cast(f"{name}/exact", name, tensor.BFLOAT16)
    del graph.node[:]
    graph.node.extend(nodes)
    result: bytes = model.SerializeToString()
    return result
