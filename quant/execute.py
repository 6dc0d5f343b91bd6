"""Run a graph one operator at a time, each operator alone in onnxruntime.

Slower than a session, but every value can be changed between two operators: that is what exact
simulation and sequential rounding need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from quant.encoding import QuantPlan
from quant.graph import array_of, folded_into, name_of
from quant.model import Model

Array = np.ndarray[Any, Any]


class NodeRunner:
    """One node as a session; its initializers are inputs too, so that they can be replaced."""

    def __init__(self, node: ir.Node, opset: int) -> None:
        self.node = node
        operands = list(dict.fromkeys(v for v in node.inputs if v is not None))
        self.constants = {
            name_of(v): array_of(v) for v in operands if v.is_initializer() and v.const_value
        }
        self.names = [name_of(v) for v in operands]
        self.outputs = [name_of(v) for v in node.outputs if v.name]
        copies = {
            id(v): ir.Value(name=v.name, shape=v.shape, type=v.type or _type_of(v))
            for v in operands
        }
        # Constants that shape the result (axes, dims) must stay constants for onnxruntime.
        fixed = [copies[id(v)] for v in operands if v.is_initializer() and not _is_data(v)]
        for v in operands:
            if copies[id(v)] in fixed:
                copies[id(v)].const_value = v.const_value
        outputs = [ir.Value(name=v.name, shape=None, type=v.type) for v in node.outputs]
        clone = ir.node(
            node.op_type,
            [None if v is None else copies[id(v)] for v in node.inputs],
            dict(node.attributes),
            domain=node.domain,
            outputs=outputs,
            name=node.name or self.outputs[0],
        )
        graph = ir.Graph(
            [c for c in copies.values() if c not in fixed],
            [o for o in outputs if o.name],
            nodes=[clone],
            initializers=fixed,
            opset_imports={"": opset},
            name="node",
        )
        self.names = [n for n in self.names if n not in {c.name for c in fixed}]
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.enable_cpu_mem_arena = False
        proto = ir.to_proto(ir.Model(graph, ir_version=10))
        self.session = ort.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, values: Mapping[str, Array], replaced: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. `replaced` gives other data for some initializers."""
        feed = {n: replaced.get(n, self.constants.get(n, values.get(n))) for n in self.names}
        results = self.session.run(self.outputs, feed)
        return dict(zip(self.outputs, results, strict=True))


def _type_of(value: ir.Value) -> ir.TypeProtocol | None:
    return None if value.const_value is None else ir.TensorType(value.const_value.dtype)


def _is_data(value: ir.Value) -> bool:
    return (
        value.const_value is not None
        and value.const_value.dtype == ir.DataType.FLOAT
        and value.const_value.size > 0
        and len(value.const_value.shape) > 0
    )


def simulate(
    model: Model, plan: QuantPlan, feeds: Sequence[Mapping[str, Array]]
) -> list[dict[str, Array]]:
    """Outputs of the quantized model computed from the float graph and the plan.

    Weights are replaced by their dequantized codes, and every planned activation by
    encoding.fake() of itself: the definition that the exported QDQ graph must equal bit for bit.
    """
    graph = model.ir.graph
    opset = model.ir.opset_imports[""]
    weights = {}
    for name, value in graph.initializers.items():
        encoding = plan.tensors.get(name)
        if encoding is not None:
            codes = plan.codes.get(name)
            data = array_of(value)
            weights[name] = encoding.fake(data) if codes is None else encoding.dequantize(codes)
    runners = [NodeRunner(node, opset) for node in graph]
    results = []
    for feed in feeds:
        values = {name: _encode(plan, name, x) for name, x in feed.items()}
        for node, runner in zip(graph, runners, strict=True):
            folded = [v for v in node.inputs[:1] if v is not None and folded_into(v) is not None]
            for name, x in runner.run(values, weights).items():
                values[name] = _encode(plan, name, x)
            for value in folded:
                values.pop(name_of(value), None)
        results.append({name_of(v): values[name_of(v)] for v in graph.outputs})
    return results


def _encode(plan: QuantPlan, name: str, x: Array) -> Array:
    encoding = plan.tensors.get(name)
    if encoding is not None:
        x = encoding.fake(x)
    converted = plan.converted.get(name)
    return x if converted is None else converted.fake(x)
