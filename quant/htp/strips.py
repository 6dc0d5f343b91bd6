"""Split the row-local beginning of a graph into horizontal strips with halos.

Where the activations of a convolutional graph do not fit into VTCM, the compiler spills them to
DDR and fetches them back. Computing the graph strip by strip keeps the working set small; every
strip computes again the few rows above and below that its convolutions look at (the halo). The
function of the graph does not change: each output row is computed from the same values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Rows = tuple[int, int]  # [first, behind the last)

_UNARY = {
    "Relu",
    "Clip",
    "LeakyRelu",
    "Elu",
    "Sigmoid",
    "Tanh",
    "HardSwish",
    "HardSigmoid",
    "Abs",
    "Neg",
    "Identity",
    "BatchNormalization",
    "QuantizeLinear",
    "DequantizeLinear",
}
_BINARY = {"Add", "Sub", "Mul", "Div", "Min", "Max"}
_WINDOW = {"Conv", "MaxPool", "AveragePool"}
_HEIGHT_AXIS = 2


@dataclass(frozen=True)
class _Window:
    """Rows a window operator looks at: kernel, stride, dilation, padding above and below."""

    kernel: int
    stride: int
    dilation: int
    above: int
    below: int

    def source(self, rows: Rows, height: int) -> tuple[Rows, int, int]:
        """Input rows needed for output `rows`, and the padding left above and below them."""
        first = rows[0] * self.stride - self.above
        end = (rows[1] - 1) * self.stride - self.above + (self.kernel - 1) * self.dilation + 1
        return (max(first, 0), min(end, height)), max(-first, 0), max(end - height, 0)


def split_into_strips(model: onnx.ModelProto, strips: int) -> onnx.ModelProto | None:
    """`model` with its row-local beginning computed in `strips` horizontal strips.

    Row-local: convolutions, pooling and element-wise operators on (N, C, H, W) tensors, reached
    from the inputs through nothing else. None where there is no such part with at least one
    convolution, or where a strip would have no row. Weights are shared, not copied.
    """
    return _Splitter(model).split(strips)


class _Splitter:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self.shapes: dict[str, tuple[int, ...]] = {}
        for value in [*graph.input, *graph.output, *graph.value_info]:
            if value.type.tensor_type.HasField("shape"):
                self.shapes[value.name] = tuple(
                    d.dim_value for d in value.type.tensor_type.shape.dim
                )
        self.initializers = {i.name: i for i in graph.initializer}
        for name, initializer in self.initializers.items():
            self.shapes[name] = tuple(initializer.dims)
        self.constants = set(self.initializers)
        for node in graph.node:
            if node.input and all(i in self.constants for i in node.input if i):
                self.constants.update(node.output)
        self.producer = {o: n for n in graph.node for o in n.output}
        self.region = self._region(graph)
        self.nodes: list[onnx.NodeProto] = []
        self.added: dict[str, onnx.TensorProto] = {}

    def _region(self, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
        inside = {i.name for i in graph.input if self._spatial(i.name)}
        nodes = []
        for node in graph.node:
            data = [i for i in node.input if i and i not in self.constants]
            if data and all(i in inside for i in data) and self._row_local(node, data):
                nodes.append(node)
                inside.update(node.output)
        return nodes

    def _spatial(self, name: str) -> bool:
        shape = self.shapes.get(name, ())
        return len(shape) == 4 and min(shape) > 0

    def _row_local(self, node: onnx.NodeProto, data: list[str]) -> bool:
        if node.domain not in ("", "ai.onnx") or len(node.output) != 1:
            return False
        if not self._spatial(node.output[0]):
            return False
        height = self.shapes[node.output[0]][_HEIGHT_AXIS]
        attributes = _attributes(node)
        if node.op_type in _UNARY:
            constants = [i for i in node.input[1:] if i]
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                per_tensor = all(np.prod(self.shapes[i]) == 1 for i in constants)
                return per_tensor or attributes.get("axis", 1) == 1
            return data == [node.input[0]]
        if node.op_type in _BINARY:
            return all(self._same_rows(i, height) for i in node.input)
        if node.op_type == "Concat":
            return attributes.get("axis") == 1 and all(self._same_rows(i, height) for i in data)
        if node.op_type in _WINDOW:
            plain = attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
            return data == [node.input[0]] and plain and not attributes.get("ceil_mode")
        return False

    def _same_rows(self, name: str, height: int) -> bool:
        shape = self.shapes.get(name, ())
        if name in self.constants:
            return len(shape) < 2 or shape[-2] == 1
        return self._spatial(name) and shape[_HEIGHT_AXIS] == height

    def _window(self, node: onnx.NodeProto) -> _Window:
        a = _attributes(node)
        kernel = a.get("kernel_shape") or self.shapes[node.input[1]][2:]
        pads = a.get("pads") or [0, 0, 0, 0]
        stride = (a.get("strides") or [1, 1])[0]
        dilation = (a.get("dilations") or [1, 1])[0]
        return _Window(int(kernel[0]), int(stride), int(dilation), int(pads[0]), int(pads[2]))

    def _needs(self, node: onnx.NodeProto, rows: Rows) -> Rows:
        """Rows of the node's data inputs that output `rows` are computed from."""
        if node.op_type in _WINDOW:
            height = self.shapes[node.input[0]][_HEIGHT_AXIS]
            return self._window(node).source(rows, height)[0]
        return rows

    def split(self, strips: int) -> onnx.ModelProto | None:
        if not any(n.op_type == "Conv" for n in self.region):
            return None
        graph = self.model.graph
        names = {n.output[0] for n in self.region}
        outputs = [o.name for o in graph.output if o.name in names]
        for node in graph.node:
            if node.output and node.output[0] not in names:
                outputs += [i for i in node.input if i in names and i not in outputs]
        if not outputs or min(self.shapes[o][_HEIGHT_AXIS] for o in outputs) < strips:
            return None
        parts: dict[str, list[str]] = {o: [] for o in outputs}
        for k in range(strips):
            demand: dict[str, Rows] = {}
            for name in outputs:
                height = self.shapes[name][_HEIGHT_AXIS]
                _widen(demand, name, (height * k // strips, height * (k + 1) // strips))
            for node in reversed(self.region):
                if node.output[0] in demand:
                    rows = self._needs(node, demand[node.output[0]])
                    for name in self._data(node):
                        _widen(demand, name, rows)
            have: dict[str, str] = {}
            for node in self.region:
                if node.output[0] in demand:
                    self._emit(node, k, demand, have)
            for name in outputs:
                height = self.shapes[name][_HEIGHT_AXIS]
                rows = (height * k // strips, height * (k + 1) // strips)
                parts[name].append(self._rows_of(name, rows, k, demand, have))
        for name in outputs:
            self._join(name, parts[name])
        return self._assemble(names)

    def _data(self, node: onnx.NodeProto) -> list[str]:
        return [i for i in node.input if i and i not in self.constants]

    def _emit(
        self, node: onnx.NodeProto, k: int, demand: dict[str, Rows], have: dict[str, str]
    ) -> None:
        """One strip's copy of a node."""
        rows = demand[node.output[0]]
        needs = self._needs(node, rows)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{node.name or node.output[0]}_strip{k}"
        for i, name in enumerate(node.input):
            if name and name not in self.constants:
                copy.input[i] = self._rows_of(name, needs, k, demand, have)
        copy.output[0] = have[node.output[0]] = f"{node.output[0]}_strip{k}"
        if node.op_type in _WINDOW:
            window = self._window(node)
            height = self.shapes[node.input[0]][_HEIGHT_AXIS]
            _, above, below = window.source(rows, height)
            pads = list(_attributes(node).get("pads") or [0, 0, 0, 0])
            pads[0], pads[2] = above, below
            kept = [a for a in copy.attribute if a.name != "pads"]
            del copy.attribute[:]
            copy.attribute.extend([*kept, helper.make_attribute("pads", pads)])
        self.nodes.append(copy)

    def _rows_of(
        self, name: str, rows: Rows, k: int, demand: dict[str, Rows], have: dict[str, str]
    ) -> str:
        """A tensor with exactly `rows` of `name`, cut out of what the strip has of it."""
        if name in have and demand[name] == rows:
            return have[name]
        source, first = (have[name], demand[name][0]) if name in have else (name, 0)
        whole = (0, self.shapes[name][_HEIGHT_AXIS])
        if name not in have and rows == whole:
            return name
        cut = f"{name}_strip{k}_rows{rows[0]}_{rows[1]}"
        if cut in have:
            return have[cut]
        bounds = [
            self._constant("strip_row_", [rows[0] - first]),
            self._constant("strip_row_", [rows[1] - first]),
            self._constant("strip_axis_", [_HEIGHT_AXIS]),
        ]
        self.nodes.append(helper.make_node("Slice", [source, *bounds], [cut], name=cut))
        have[cut] = self._requantized(name, cut)
        return have[cut]

    def _requantized(self, like: str, name: str, result: str = "") -> str:
        """`name` through Q and DQ with the encoding of `like`: exact, and what the HTP expects."""
        node = self.producer.get(like)
        if node is None or node.op_type != "DequantizeLinear":
            return name
        quantized, result = f"{name}_q", result or f"{name}_dq"
        params = list(node.input[1:])
        for op, source, target in (
            ("QuantizeLinear", name, quantized),
            ("DequantizeLinear", quantized, result),
        ):
            copy = helper.make_node(op, [source, *params], [target], name=target)
            copy.attribute.extend(node.attribute)
            self.nodes.append(copy)
        return result

    def _join(self, name: str, parts: list[str]) -> None:
        node = self.producer[name]
        quantized = node.op_type == "DequantizeLinear"
        joined = f"{name}_joined" if quantized else name
        self.nodes.append(
            helper.make_node("Concat", parts, [joined], name=f"{name}_join", axis=_HEIGHT_AXIS)
        )
        if quantized:
            self._requantized(name, joined, name)

    def _constant(self, prefix: str, values: list[int]) -> str:
        name = prefix + "_".join(str(v) for v in values)
        self.added[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        return name

    def _assemble(self, replaced: set[str]) -> onnx.ModelProto:
        out = onnx.ModelProto()
        out.CopyFrom(self.model)
        kept = [n for n in self.model.graph.node if n.output[0] not in replaced]
        constant = [n for n in kept if self._constant_node(n)]
        rest = [n for n in kept if not self._constant_node(n)]
        del out.graph.node[:]
        # Region inputs are graph inputs only, so constants first, then strips, is in order.
        out.graph.node.extend([*constant, *self.nodes, *rest])
        out.graph.initializer.extend(self.added.values())
        del out.graph.value_info[:]
        return out

    def _constant_node(self, node: onnx.NodeProto) -> bool:
        return bool(node.input) and all(i in self.constants for i in node.input if i)


def _widen(demand: dict[str, Rows], name: str, rows: Rows) -> None:
    old = demand.get(name, rows)
    demand[name] = (min(old[0], rows[0]), max(old[1], rows[1]))


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}
