"""Function-preserving clean-up before quantization.

Each pass states what it does and when it does not apply; all edit a graph in place and return
whether they changed it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quant.fuse import fuse_gelu, fuse_layer_norm, fuse_linear, fuse_tanh_gelu
from quant.graph import (
    array_of,
    classify,
    float_attribute,
    int_attribute,
    is_float,
    name_of,
    set_initializer,
)
from quant.lower import lower_lstm
from quant.masks import limit_constants
from quant.model import Model, wrap


def simplify(model: Model) -> Model:
    """The model in the form the methods work on: same function, fewer and fusable operators."""
    graph = model.clone()
    drop_identities(graph.graph)
    fold_batch_normalization(graph.graph)
    lower_lstm(graph.graph)
    limit_constants(graph.graph)
    fuse_layer_norm(graph.graph)
    fuse_gelu(graph.graph)
    fuse_tanh_gelu(graph.graph)
    fuse_linear(graph.graph)
    normalize_gemm(graph.graph)
    unshare_initializers(graph.graph)
    return wrap(graph, model.name)


def drop_identities(graph: ir.Graph) -> bool:
    """Remove Identity and inference-time Dropout, except between a model input and an output."""
    changed = False
    for node in list(graph):
        if node.op_type not in {"Identity", "Dropout"} or node.inputs[0] is None:
            continue
        source, output = node.inputs[0], node.outputs[0]
        if len(node.outputs) > 1 and node.outputs[1].uses():
            continue
        if output.is_graph_output():
            if source.producer() is None or source.is_graph_output():
                continue
            name = name_of(output)
            output.name = f"{name}_identity"
            source.name = name
        ir.convenience.replace_all_uses_with(
            output, source, replace_graph_outputs=output.is_graph_output()
        )
        graph.remove(node, safe=True)
        changed = True
    return changed


def fold_batch_normalization(graph: ir.Graph) -> bool:
    """Fold BatchNormalization into the Conv before it, when nothing else reads that Conv."""
    changed = False
    for node in list(graph):
        if node.op_type != "BatchNormalization" or node.inputs[0] is None:
            continue
        conv = node.inputs[0].producer()
        if conv is None or conv.op_type != "Conv" or len(node.inputs[0].uses()) != 1:
            continue
        weight = conv.inputs[1]
        if weight is None or not weight.is_initializer() or node.inputs[0].is_graph_output():
            continue
        parameters = [array_of(v).astype(np.float64) for v in node.inputs[1:5] if v is not None]
        if len(parameters) != 4:
            continue
        gamma, beta, mean, variance = parameters
        factor = gamma / np.sqrt(variance + float_attribute(node, "epsilon", 1e-5))
        data = array_of(weight).astype(np.float64)
        old = conv.inputs[2] if len(conv.inputs) > 2 else None
        bias = 0.0 if old is None else array_of(old).astype(np.float64)
        scaled = (data * factor.reshape(-1, *[1] * (data.ndim - 1))).astype(np.float32)
        shift = ((bias - mean) * factor + beta).astype(np.float32)
        conv.replace_input_with(1, set_initializer(graph, f"{weight.name}_folded", scaled))
        new_bias = set_initializer(graph, f"{weight.name}_folded_bias", shift)
        if len(conv.inputs) < 3:
            conv.resize_inputs(3)
        conv.replace_input_with(2, new_bias)
        output, source = node.outputs[0], node.inputs[0]
        is_output, name = output.is_graph_output(), name_of(output)
        output.name = f"{name}_bn"
        source.name = name
        ir.convenience.replace_all_uses_with(output, source, replace_graph_outputs=is_output)
        graph.remove(node, safe=True)
        changed = True
    if changed:
        _drop_unused_initializers(graph)
    return changed


def normalize_gemm(graph: ir.Graph) -> bool:
    """Fold alpha and beta of Gemm into its constants, and give it a bias of shape (N,)."""
    changed = False
    for node in graph:
        if node.op_type != "Gemm" or len(node.inputs) < 2:
            continue
        weight = node.inputs[1]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if weight is None or not weight.is_initializer():
            continue
        if bias is not None and not bias.is_initializer():
            continue
        alpha, beta = float_attribute(node, "alpha", 1.0), float_attribute(node, "beta", 1.0)
        if alpha != 1.0:
            data = array_of(weight) * np.float32(alpha)
            node.replace_input_with(1, set_initializer(graph, f"{weight.name}_alpha", data))
            node.attributes["alpha"] = ir.AttrFloat32("alpha", 1.0)
            changed = True
        if bias is not None:
            size = array_of(weight).shape[0 if int_attribute(node, "transB", 0) else 1]
            data = array_of(bias) * np.float32(beta)
            rows = 1 if data.ndim < 2 else data.shape[0]
            if rows == 1 and (data.shape != (size,) or beta != 1.0):
                flat = np.broadcast_to(data.reshape(-1), (size,))
                node.replace_input_with(2, set_initializer(graph, f"{bias.name}_flat", flat))
                node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
                changed = True
    if changed:
        _drop_unused_initializers(graph)
    return changed


def unshare_initializers(graph: ir.Graph) -> bool:
    """Give each use of a float initializer its own copy where the uses need other encodings.

    Two uses agree when role and channel axis agree; biases never agree, since their scale comes
    from their own operator. The copies share memory until one is edited.
    """
    changed = False
    for value in list(graph.initializers.values()):
        if not is_float(value):
            continue
        first: object = None
        for k, (node, index) in enumerate(list(value.uses())):
            role, axis = classify(node, index)
            key = (role, axis, id(node) if role == "bias" else None)
            if k == 0:
                first = key
            elif key != first:
                copy = set_initializer(graph, f"{value.name}_use", array_of(value))
                node.replace_input_with(index, copy)
                changed = True
    return changed


def _drop_unused_initializers(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
