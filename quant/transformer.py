"""Function-preserving rewrites that make a transformer's activations fit 8 bits.

Every rewrite computes the same function in exact arithmetic; each moves a few huge values to where
they cost nothing.

- fold_score_scale: the 1/sqrt(d) of attention scores goes into the query weights.
- centre_attention: softmax ignores what is added to all keys alike, and attention weights sum to
  one: so the mean key leaves the key bias, and the mean value moves to the output bias.
- rotate_residuals: a few channels of the residual stream are up to 100 times the others. An
  orthogonal map Q with Q 1 = 1 commutes with LayerNormalization up to its affine part, so the
  stream may run in a basis where each outlier is spread flat over all channels. gamma and beta move
  into the readers; the residual branch becomes a product with Q^T diag(gamma) Q.
- split_activation: channels of a hidden layer (GELU input and output) with outliers get an
  operator, and so an encoding, of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from quant.calibrate import stream
from quant.encoding import Array
from quant.fuse import remove_dead
from quant.graph import array_of, int_attribute, name_of, set_initializer
from quant.layers import token_mask
from quant.model import Model, wrap
from quant.task import Task

OUTLIER = 2.5  # times the median channel's magnitude
_MAX_OUTLIERS = 32
_SAMPLES = 24
_ACTIVATIONS = {"Gelu", "Relu", "Silu"}


def prepare(model: Model, task: Task, *, spread_outliers: bool = True) -> Model:
    """The rewrites of this module where their patterns occur; the same model where none does.

    spread_outliers: also rotate_residuals and split_activation. Sixteen bits hold the outliers as
    they are, and the matrices that a rotation adds cost more in weight rounding than they save.
    """
    graph = model.clone()
    changed = fold_score_scale(graph.graph)
    if changed:
        model = wrap(graph, model.name)
    blocks = [n for n in model.ir.graph if n.op_type == "LayerNormalization"]
    if not blocks:
        return model
    magnitudes = channel_statistics(model, task, _interesting(model.ir.graph))
    graph = model.clone()
    centre_attention(graph.graph, magnitudes)
    if spread_outliers:
        split_activation(graph.graph, magnitudes)
        rotate_residuals(graph.graph, magnitudes)
    remove_dead(graph.graph)
    graph.graph.sort()
    return wrap(graph, model.name)


@dataclass
class Channels:
    """Per channel of the last axis, over real tokens: largest magnitude and mean."""

    peak: Array
    total: Array
    n: int

    @property
    def mean(self) -> Array:
        return self.total / max(self.n, 1)


def channel_statistics(model: Model, task: Task, names: Iterable[str]) -> dict[str, Channels]:
    """Channels of each named value, (last dimension,)."""
    wanted = list(dict.fromkeys(names))
    mask = token_mask(model, task)
    extra = [] if mask is None else [mask.name]
    out: dict[str, Channels] = {}
    for values in stream(model, task, [*wanted, *extra], samples=_SAMPLES):
        for name in wanted:
            x = values[name]
            if mask is not None:
                x = mask.rows(x, mask.keep(values))
            rows = x.reshape(-1, x.shape[-1])
            seen = out.setdefault(
                name, Channels(np.zeros(rows.shape[1]), np.zeros(rows.shape[1]), 0)
            )
            seen.peak = np.maximum(seen.peak, np.abs(rows).max(0, initial=0.0))
            seen.total = seen.total + rows.sum(0, dtype=np.float64)
            seen.n += len(rows)
    return out


def _interesting(graph: ir.Graph) -> list[str]:
    names: list[str] = []
    for node in graph:
        if node.op_type == "LayerNormalization" and node.inputs[0] is not None:
            names.append(name_of(node.inputs[0]))
        if node.op_type in _ACTIVATIONS or node.op_type == "Gemm":
            names.append(name_of(node.outputs[0]))
    return [n for n in names if n not in {v.name for v in graph.inputs}]


def _weight(node: ir.Node) -> Array:
    """The weight of a Gemm as (inputs, outputs), float64."""
    value = node.inputs[1]
    assert value is not None
    data = array_of(value).astype(np.float64)
    return data.T if int_attribute(node, "transB", 0) else data


def _bias(node: ir.Node) -> Array:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return np.zeros(_weight(node).shape[1])
    return array_of(value).astype(np.float64).reshape(-1)


def _rewrite_gemm(graph: ir.Graph, node: ir.Node, weight: Array, bias: Array) -> None:
    """Give a Gemm new constants of its own; weight (inputs, outputs)."""
    old = node.inputs[1]
    assert old is not None
    node.attributes["transB"] = ir.AttrInt64("transB", 0)
    node.replace_input_with(1, set_initializer(graph, f"{old.name}_w", weight.astype(np.float32)))
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, set_initializer(graph, f"{old.name}_b", bias.astype(np.float32)))


def _constant_gemm(node: ir.Node | None) -> bool:
    if node is None or node.op_type != "Gemm" or int_attribute(node, "transA", 0):
        return False
    operands = node.inputs[1:]
    return all(v is not None and v.is_initializer() for v in operands)


def _single(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


_MOVES = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity"}


def _source_gemm(value: ir.Value | None, through: set[str]) -> ir.Node | None:
    """The constant Gemm that alone computes `value`, seen through moves read nowhere else."""
    while value is not None:
        producer = value.producer()
        if producer is None or len(list(value.uses())) != 1 or value.is_graph_output():
            return None
        if _constant_gemm(producer):
            return producer
        if producer.op_type not in through:
            return None
        value = producer.inputs[0]
    return None


def fold_score_scale(graph: ir.Graph) -> bool:
    """MatMul(q, k) divided or multiplied by one constant: into the Gemm that makes q."""
    changed = False
    for node in list(graph):
        if node.op_type not in {"Div", "Mul"} or len(node.inputs) != 2:
            continue
        product, constant = node.inputs
        if product is None or constant is None or constant.const_value is None:
            continue
        if constant.const_value.size != 1:
            continue
        matmul = product.producer()
        if matmul is None or matmul.op_type != "MatMul" or _single(product) is not node:
            continue
        if node.outputs[0].is_graph_output():
            continue
        gemm = _source_gemm(matmul.inputs[0], _MOVES)
        if gemm is None:
            continue
        factor = float(array_of(constant).reshape(-1)[0])
        factor = 1.0 / factor if node.op_type == "Div" else factor
        _rewrite_gemm(graph, gemm, _weight(gemm) * factor, _bias(gemm) * factor)
        ir.convenience.replace_all_uses_with(node.outputs[0], product)
        graph.remove(node, safe=True)
        changed = True
    if changed:
        remove_dead(graph)
    return changed


def centre_attention(graph: ir.Graph, channels: dict[str, Channels]) -> bool:
    """Take the mean key out of the key bias, and move the mean value into the output bias.

    Applies where scores are MatMul(q, k^T) -> [Add mask] -> Softmax over the last axis and k, v and
    the output projection are Gemms that nothing else reads.
    """
    changed = False
    for softmax in list(graph):
        if softmax.op_type != "Softmax" or softmax.inputs[0] is None:
            continue
        scores = softmax.inputs[0].producer()
        if scores is not None and scores.op_type == "Add":
            products = [
                v.producer() for v in scores.inputs if v is not None and v.producer() is not None
            ]
            scores = next((p for p in products if p is not None and p.op_type == "MatMul"), None)
        if scores is None or scores.op_type != "MatMul":
            continue
        key = _source_gemm(scores.inputs[1], _MOVES)
        if key is not None and name_of(key.outputs[0]) in channels:
            mean = channels[name_of(key.outputs[0])].mean
            _rewrite_gemm(graph, key, _weight(key), _bias(key) - mean)
            changed = True
        context = _single(softmax.outputs[0])
        if context is None or context.op_type != "MatMul":
            continue
        value = _source_gemm(context.inputs[1], _MOVES)
        out: ir.Node | None = _single(context.outputs[0])
        while out is not None and out.op_type in _MOVES:
            out = _single(out.outputs[0])
        if value is None or not _constant_gemm(out) or out is None:
            continue
        if name_of(value.outputs[0]) not in channels:
            continue
        mean = channels[name_of(value.outputs[0])].mean
        weight = _weight(out)
        if weight.shape[0] != mean.size:
            continue
        _rewrite_gemm(graph, value, _weight(value), _bias(value) - mean)
        _rewrite_gemm(graph, out, weight, _bias(out) + mean @ weight)
        changed = True
    return changed


def split_activation(graph: ir.Graph, channels: dict[str, Channels]) -> bool:
    """Gemm -> [Reshape] -> GELU -> [Reshape] -> Gemm, outlier channels on a path of their own.

    The two partial products are added after the second Gemm. Outliers are channels whose output
    exceeds OUTLIER times the 99th percentile of the channels' magnitudes.
    """
    changed = False
    for node in list(graph):
        if node.op_type not in _ACTIVATIONS or name_of(node.outputs[0]) not in channels:
            continue
        first = _source_gemm(node.inputs[0], {"Reshape"})
        second = _single(node.outputs[0])
        if second is not None and second.op_type == "Reshape":
            second = _single(second.outputs[0])
        if first is None or second is None or not _constant_gemm(second) or first is second:
            continue
        if first.outputs[0].shape is None or len(first.outputs[0].shape) != 2:
            continue
        peak = channels[name_of(node.outputs[0])].peak
        weight, bias = _weight(first), _bias(first)
        if peak.size != weight.shape[1]:
            continue
        limit = np.quantile(peak, 0.99) * 1.5
        outliers = np.flatnonzero(peak > limit)
        if outliers.size == 0 or outliers.size > _MAX_OUTLIERS:
            continue
        rest = np.setdiff1d(np.arange(peak.size), outliers)
        down, down_bias = _weight(second), _bias(second)
        x = first.inputs[0]
        assert x is not None
        rows = first.outputs[0].shape[0]
        parts: list[ir.Value] = []
        for k, picked in enumerate((rest, outliers)):
            tag = f"{name_of(node.outputs[0])}_{'main' if k == 0 else 'outliers'}"
            values = {
                "up": weight[:, picked],
                "up_b": bias[picked],
                "down": down[picked],
                "down_b": down_bias if k == 0 else np.zeros_like(down_bias),
            }
            c = {
                key: set_initializer(graph, f"{tag}_{key}", np.asarray(v, np.float32))
                for key, v in values.items()
            }
            up = ir.node("Gemm", [x, c["up"], c["up_b"]], name=f"{tag}_up")
            act = ir.node(node.op_type, [up.outputs[0]], dict(node.attributes), name=f"{tag}_act")
            out = ir.node("Gemm", [act.outputs[0], c["down"], c["down_b"]], name=f"{tag}_down")
            for made, width in ((up, picked.size), (act, picked.size), (out, down.shape[1])):
                made.outputs[0].name = f"{made.name}_out"
                made.outputs[0].shape = ir.Shape([rows, width])
                made.outputs[0].type = x.type
            graph.insert_before(second, [up, act, out])
            parts.append(out.outputs[0])
        total = ir.node("Add", parts)
        _substitute(graph, second, total)
        changed = True
    if changed:
        remove_dead(graph)
    return changed


def _substitute(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    before, after = old.outputs[0], new.outputs[0]
    after.name, after.shape, after.type = before.name, before.shape, before.type
    before.name = f"{before.name}_replaced"
    graph.insert_after(old, new)
    ir.convenience.replace_all_uses_with(
        before, after, replace_graph_outputs=before.is_graph_output()
    )


def flat_rotation(size: int, outliers: list[int]) -> Array:
    """Orthogonal Q (size, size) with Q 1 = 1 that maps each outlier channel to a flat +-1 vector.

    A product of Householder reflections, one per outlier; the flat targets are Walsh functions,
    orthogonal to each other and to the ones. Row vectors transform as s -> s Q.
    """
    ones = np.ones(size) / np.sqrt(size)
    basis: list[Array] = []
    q = np.eye(size)
    for k, channel in enumerate(outliers):
        source = np.zeros(size)
        source[channel] = 1.0
        for b in (ones, *basis):
            source -= (source @ b) * b
        source /= np.linalg.norm(source)
        basis.append(source.copy())
        target = _walsh(size, k + 1)
        vector = source @ q - target
        norm = float(vector @ vector)
        if norm > 1e-12:
            q = q - 2.0 * np.outer(q @ vector, vector) / norm
    return q


def _walsh(size: int, k: int) -> Array:
    """Unit vector of +-1/sqrt(size): Walsh function k stretched over size = 2^p * r entries."""
    power = size & -size
    index = np.arange(size) // (size // power)
    bits = np.zeros(size, np.int64)
    masked = index & k
    while masked.any():
        bits ^= masked & 1
        masked = masked >> 1
    return np.asarray(np.where(bits == 1, -1.0, 1.0) / np.sqrt(size))


@dataclass
class _Norm:
    node: ir.Node
    gamma: Array
    beta: Array
    add: ir.Node
    residual: ir.Value | None  # output of the norm before it
    branches: list[ir.Node]  # Gemms whose sum is the other operand


def rotate_residuals(graph: ir.Graph, channels: dict[str, Channels]) -> bool:
    """Run a post-norm residual stream in a basis without outlier channels (see the module).

    Applies to a LayerNormalization whose input is Add(previous norm's output, Gemm) or, for the
    first, Add(Gather(table), constant). Readers other than Gemms and the next residual get their
    values back through a Gemm.
    """
    norms = _norm_chain(graph)
    if len(norms) < 2:
        return False
    size = norms[0].gamma.size
    peaks = [
        channels[name_of(n.node.inputs[0])].peak for n in norms if n.node.inputs[0] is not None
    ]
    relative = np.max([p / max(float(np.median(p)), 1e-12) for p in peaks], axis=0)
    order = np.argsort(-relative, kind="stable")
    power = size & -size
    count = min(int((relative > OUTLIER).sum()), power - 1, _MAX_OUTLIERS)
    if count == 0:
        return False
    q = flat_rotation(size, [int(c) for c in order[:count]])
    for norm in norms:
        _rotate_input(graph, norm, q)
    for norm in norms:
        _rotate_output(graph, norm, q, norms)
    return True


def _norm_chain(graph: ir.Graph) -> list[_Norm]:
    found: list[_Norm] = []
    outputs: dict[int, _Norm] = {}
    for node in graph:
        if node.op_type != "LayerNormalization" or len(node.inputs) < 3:
            continue
        x, gamma, beta = node.inputs[:3]
        if x is None or gamma is None or beta is None or gamma.const_value is None:
            continue
        if beta.const_value is None or array_of(gamma).ndim != 1 or x.shape is None:
            continue
        add = x.producer()
        if add is None or add.op_type != "Add" or len(list(x.uses())) != 1:
            continue
        residual, fits = None, True
        branches: list[ir.Node] = []
        for operand in add.inputs:
            if operand is None:
                fits = False
            elif id(operand) in outputs:
                residual = operand
            elif operand.is_initializer():
                continue
            else:
                producer = operand.producer()
                gemms = _source_gemms(operand)
                if gemms:
                    branches += gemms
                elif producer is None or producer.op_type != "Gather" or not _table(producer):
                    fits = False
        if not fits or (residual is None and branches):
            continue
        item = _Norm(
            node,
            array_of(gamma).astype(np.float64),
            array_of(beta).astype(np.float64),
            add,
            residual,
            branches,
        )
        found.append(item)
        outputs[id(node.outputs[0])] = item
    return found


def _source_gemms(value: ir.Value) -> list[ir.Node]:
    """The constant Gemms whose sum is `value`, through reshapes and additions; none if others."""
    gemm = _source_gemm(value, {"Reshape"})
    if gemm is not None:
        return [gemm]
    producer = value.producer()
    if producer is None or _single(value) is None:
        return []
    if producer.op_type == "Reshape" and producer.inputs[0] is not None:
        return _source_gemms(producer.inputs[0])
    if producer.op_type != "Add":
        return []
    parts = [[] if v is None else _source_gemms(v) for v in producer.inputs]
    return [n for part in parts for n in part] if all(parts) else []


def _table(gather: ir.Node) -> bool:
    table = gather.inputs[0]
    return (
        table is not None
        and table.is_initializer()
        and len(list(table.uses())) == 1
        and array_of(table).ndim == 2
        and int_attribute(gather, "axis", 0) == 0
        and len(list(gather.outputs[0].uses())) == 1
    )


def _rotate_input(graph: ir.Graph, norm: _Norm, q: Array) -> None:
    """Bring the operands of the Add before the norm into the new basis (the residual later)."""
    for position, operand in enumerate(norm.add.inputs):
        if operand is None or operand is norm.residual:
            continue
        if operand.is_initializer():
            turned = array_of(operand).astype(np.float64) @ q
            norm.add.replace_input_with(
                position,
                set_initializer(graph, f"{operand.name}_turned", turned.astype(np.float32)),
            )
        elif not norm.branches:
            gather = operand.producer()
            assert gather is not None and gather.inputs[0] is not None
            table = gather.inputs[0]
            turned = array_of(table).astype(np.float64) @ q
            gather.replace_input_with(
                0, set_initializer(graph, f"{table.name}_turned", turned.astype(np.float32))
            )
    for gemm in norm.branches:
        _rewrite_gemm(graph, gemm, _weight(gemm) @ q, _bias(gemm) @ q)


def _rotate_output(graph: ir.Graph, norm: _Norm, q: Array, norms: list[_Norm]) -> None:
    """Move gamma and beta of the norm into its readers."""
    node, gamma, beta = norm.node, norm.gamma, norm.beta
    output = node.outputs[0]
    size = gamma.size
    node.replace_input_with(
        1, set_initializer(graph, f"{output.name}_ones", np.ones(size, np.float32))
    )
    node.replace_input_with(
        2, set_initializer(graph, f"{output.name}_zeros", np.zeros(size, np.float32))
    )
    undo = q.T * gamma  # (rotated, original channels): Q^T diag(gamma)
    adds = {id(other.add) for other in norms if other.residual is output}
    plain: list[tuple[ir.Node, int]] = []
    for reader, index in list(output.uses()):
        if id(reader) in adds:
            back = _dense(graph, output, undo @ q, beta @ q, f"{output.name}_residual")
            reader.replace_input_with(index, back)
            continue
        gemms = _gemm_readers(reader, index)
        if gemms is None:
            plain.append((reader, index))
            continue
        for gemm in gemms:
            weight = _weight(gemm)
            _rewrite_gemm(graph, gemm, undo @ weight, _bias(gemm) + beta @ weight)
    if plain or output.is_graph_output():
        is_output, name = output.is_graph_output(), name_of(output)
        if is_output:
            output.name = f"{name}_normalized"
        back = _dense(graph, output, undo, beta, f"{name}_restored")
        for reader, index in plain:
            reader.replace_input_with(index, back)
        if is_output:
            back.name = name
            for position, value in enumerate(graph.outputs):
                if value is output:
                    graph.outputs[position] = back


def _gemm_readers(reader: ir.Node, index: int) -> list[ir.Node] | None:
    """Gemms that read a value directly or through one Reshape to rows; None if anything else."""
    if index != 0:
        return None
    if _constant_gemm(reader):
        return [reader]
    if reader.op_type != "Reshape" or reader.outputs[0].is_graph_output():
        return None
    nodes = [use.node for use in reader.outputs[0].uses()]
    if not nodes or any(not _constant_gemm(n) for n in nodes):
        return None
    if any(use.idx != 0 for use in reader.outputs[0].uses()):
        return None
    return nodes


def _dense(graph: ir.Graph, x: ir.Value, weight: Array, bias: Array, stem: str) -> ir.Value:
    """x @ weight + bias over the last axis, for a square weight near a diagonal one.

    The diagonal is an elementwise product and only the rest a Gemm: in one 8-bit matrix the
    diagonal would set the scale, and the many small entries would drown in its rounding error.
    """
    shape = [d for d in (x.shape or ()) if isinstance(d, int)]
    size = shape[-1]
    rows = int(np.prod(shape[:-1]))
    producer = x.producer()
    assert producer is not None
    diagonal = np.diagonal(weight)
    rest = weight - np.diag(diagonal)
    c: dict[str, Array] = {
        "rows": np.array([rows, size], np.int64),
        "dims": np.array(shape, np.int64),
        "diagonal": diagonal.astype(np.float32),
        "w": rest.astype(np.float32),
        "b": bias.astype(np.float32),
    }
    v = {key: set_initializer(graph, f"{stem}_{key}", data) for key, data in c.items()}
    first = ir.node("Reshape", [x, v["rows"]])
    gemm = ir.node("Gemm", [first.outputs[0], v["w"], v["b"]])
    last = ir.node("Reshape", [gemm.outputs[0], v["dims"]])
    product = ir.node("Mul", [x, v["diagonal"]])
    total = ir.node("Add", [product.outputs[0], last.outputs[0]])
    made = ((first, "in"), (gemm, "gemm"), (last, "rest"), (product, "product"), (total, "out"))
    for node, tag in made:
        node.outputs[0].name, node.outputs[0].type = f"{stem}_{tag}", x.type
        node.outputs[0].shape = ir.Shape([rows, size] if tag in {"in", "gemm"} else shape)
    graph.insert_after(producer, [node for node, _ in made])
    return total.outputs[0]
