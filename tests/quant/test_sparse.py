"""Pruning: patterns, shares, second-order updates and the removal of channels."""

import json

import numpy as np
import onnx
import pytest

from quant.channels import find_groups, kept_count
from quant.errors import UserError
from quant.evaluate import run_model
from quant.htp.compile import compile_context
from quant.htp.options import HtpOptions
from quant.htp.soc import get_soc
from quant.methods.grammar import export, parse_methods, quantize
from quant.methods.sparse import SparseOptions, schedule
from quant.model import load, save
from quant.pruning import (
    GRID,
    Pattern,
    layer_sparsities,
    parse_pattern,
    pattern_mask,
    share_mask,
)
from quant.report import sqnr_db
from quant.rounding import greedy_round
from quant.task import load_task


def quantized(path, variant):
    model = load(path)
    (parsed,) = parse_methods(variant)
    return quantize(model, load_task(None, model), parsed)


def test_a_pattern_keeps_n_of_every_m_input_channels_of_each_tap():
    score = np.random.default_rng(0).random((3, 8 * 9))  # 8 channels x 3x3 taps, as stored
    mask = pattern_mask(score, Pattern(2, 4), taps=9).reshape(3, 8, 9)
    groups = mask.reshape(3, 2, 4, 9)
    assert (groups.sum(2) == 2).all()
    kept = np.sort(np.where(groups, score.reshape(3, 2, 4, 9), 0), axis=2)[:, :, 2:]
    assert np.array_equal(kept, np.sort(score.reshape(3, 2, 4, 9), axis=2)[:, :, 2:])


def test_a_share_drops_the_lowest():
    mask = share_mask(np.array([[0.1, 5.0, 0.2], [3.0, 0.0, 4.0]]), 0.5)
    assert mask.tolist() == [[False, True, False], [True, False, True]]


def test_layers_of_little_redundancy_keep_more():
    easy, hard = np.square(np.array(GRID)), 30 * np.square(np.array(GRID))
    curves, sizes = {"a": easy, "b": hard, "c": easy}, {"a": 1000, "b": 1000, "c": 2000}
    shares = layer_sparsities(curves, sizes, 0.5)
    assert np.isclose(sum(shares[n] * sizes[n] for n in sizes), 2000)
    assert shares["c"] > shares["a"] > 0.25 > shares["b"]  # c has more weights to the same error

    def error(s):
        return sum(np.interp(s[n], GRID, np.sqrt(curves[n])) ** 2 for n in s)

    moved = {**shares, "a": shares["a"] + 0.1, "c": shares["c"] - 0.05}
    assert error(shares) < min(error(dict.fromkeys(shares, 0.5)), error(moved))


def test_shares_reach_what_is_asked_when_it_is_nearly_everything():
    shares = layer_sparsities({"a": np.array(GRID)}, {"a": 100}, 0.9)
    assert np.isclose(shares["a"], 0.9)


def test_the_update_of_what_stays_lowers_the_output_error():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((500, 16)) @ rng.standard_normal((16, 16))
    h = x.T @ x / 500 + 1e-3 * np.eye(16)
    w = rng.standard_normal((8, 16))
    scale = np.full_like(w, np.abs(w).max() / 100)
    mask = share_mask(np.abs(w), 0.5)

    def snap(t, j):
        return np.clip(np.rint(t), -127, 127) * mask[:, j]

    q = greedy_round(w, h, scale, snap)
    assert not q[~mask].any()

    def error(values):
        return float((((values - w) @ x.T) ** 2).sum())

    # The continuous optimum with this mask, row by row.
    best = np.zeros_like(w)
    for i, m in enumerate(mask):
        best[i, m] = np.linalg.solve(h[np.ix_(m, m)], h[m] @ w[i])
    assert error(q * scale) < 0.6 * error(w * mask)
    assert error(q * scale) < 1.35 * error(best)


@pytest.mark.parametrize("method", ["magnitude", "weight_importance"])
@pytest.mark.parametrize("order", ["sparse[{}]", "sparse[{}]+int4", "per-channel+sparse[{}]"])
def test_the_pattern_holds_exactly_in_the_exported_integers(cnn_path, tmp_path, method, order):
    options = f"structured-pattern=2:4,pruning-method={method}"
    state = quantized(cnn_path, order.format(options))
    save(export(state), tmp_path / "q.onnx")
    found = {
        t.name: onnx.numpy_helper.to_array(t)
        for t in onnx.load(tmp_path / "q.onnx").graph.initializer
    }
    codes = found["w2_quantized"].astype(int).reshape(16, 4, 4)
    assert ((codes != 0).sum(2) <= 2).all() and (codes != 0).any()
    assert (found["w1_quantized"].astype(int) != 0).mean() > 0.8  # depthwise stays dense
    note = state.notes[-1]
    assert "not eligible, left dense: w0, w1" in note and "no fine-tuning took place" in note


def test_unstructured_sparsity_is_what_was_asked(cnn_path):
    state = quantized(cnn_path, "sparse[sparsity=0.7]")
    pruned = [state.plan.codes[n] for n in ("w0", "w2", "wf")]
    zeros = sum(int((c == 0).sum()) for c in pruned) / sum(c.size for c in pruned)
    assert 0.68 < zeros < 0.75


def test_sparsity_by_layer_from_a_file(cnn_path, tmp_path):
    path = tmp_path / "layers.json"
    path.write_text(json.dumps({"w0": 0, "w2": 0.75}))
    options = f"pruning-method=magnitude,layer-wise-sparsity={path}"
    state = quantized(cnn_path, f"sparse[{options}]")
    share = {n: float((state.plan.codes[n] == 0).mean()) for n in ("w2", "wf")}
    assert 0.75 <= share["w2"] < 0.8 and 0.5 <= share["wf"] < 0.55
    assert "w0" not in state.plan.codes


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"w9": 0.5}', "w9"),
        ('{"w2": 1.0}', r"not in \[0, 1\)"),
        ('{"w2": "x"}', r"not in \[0, 1\)"),
        ("[1]", "not a JSON object"),
        ("{", "not JSON"),
    ],
)
def test_bad_layer_files(cnn_path, tmp_path, text, part):
    path = tmp_path / "layers.json"
    path.write_text(text)
    with pytest.raises(UserError, match=part):
        quantized(cnn_path, f"sparse[layer-wise-sparsity={path}]")


def chain(builder, path):
    """Conv, depthwise, Conv, Conv with a residual sum, pooling, Gemm."""
    b = builder
    b.node("Conv", ["x", b.weight("w0", 32, 1, 3, 3, scale=0.3), b.weight("b0", 32)], "c0",
           pads=[1, 1, 1, 1])  # fmt: skip
    b.node("Relu", ["c0"], "r0")
    b.node("Conv", ["r0", b.weight("wd", 32, 1, 3, 3, scale=0.3), b.weight("bd", 32)], "d0",
           pads=[1, 1, 1, 1], group=32)  # fmt: skip
    b.node("Relu", ["d0"], "r1")
    b.node("Conv", ["r1", b.weight("w1", 24, 32, 3, 3, scale=0.06), b.weight("b1", 24)], "c1",
           pads=[1, 1, 1, 1])  # fmt: skip
    b.node("Conv", ["c1", b.weight("w2", 24, 24, 1, 1, scale=0.2), b.weight("b2", 24)], "c2")
    b.node("Add", ["c1", "c2"], "a")
    b.node("GlobalAveragePool", ["a"], "g")
    b.node("Flatten", ["g"], "f", axis=1)
    b.node("Gemm", ["f", b.weight("wf", 10, 24, scale=0.5), b.weight("bf", 10)], "y", transB=1)
    return b.save(path, [("x", [1, 1, 12, 12])], [("y", [1, 10])], opset=21)


def test_whole_channels_leave_the_graph_and_the_context(builder, tmp_path):
    path = chain(builder, tmp_path / "m.onnx")
    dense = quantized(path, "int8")
    (group,) = find_groups(dense)
    assert (group.producer.weight, group.channels) == ("w0", 32)
    assert [layer.weight for layer in group.between] == ["wd"]
    assert [layer.weight for layer in group.readers] == ["w1"]
    state = quantized(path, "sparse[pruning-method=structured,sparsity=0.5]")
    shapes = {n: tuple(v.const_value.shape) for n, v in state.model.ir.graph.initializers.items()}
    assert shapes["w0"] == (16, 1, 3, 3) and shapes["wd"] == (16, 1, 3, 3)
    assert shapes["w1"] == (24, 16, 3, 3) and shapes["b0"] == (16,) and shapes["b1"] == (24,)
    assert "16 of 32 channels removed" in state.notes[-1]
    sizes = {}
    for name, s in (("dense", dense), ("pruned", state)):
        save(export(s), tmp_path / f"{name}.onnx")
        out = compile_context(
            tmp_path / f"{name}.onnx", get_soc("sm8650"), HtpOptions(), tmp_path / name
        )
        sizes[name] = out.context_bin.stat().st_size
    assert sizes["pruned"] < sizes["dense"]


def test_readers_take_over_what_removed_channels_carried(builder, tmp_path):
    """Channel 2 copied over channel 1: one of the two goes for nothing."""
    path = chain(builder, tmp_path / "m.onnx")
    proto = onnx.load(path)
    for t in proto.graph.initializer:
        if t.name in {"w0", "b0", "wd", "bd"}:
            data = onnx.numpy_helper.to_array(t).copy()
            data[16:] = data[:16]
            t.CopyFrom(onnx.numpy_helper.from_array(data, t.name))
    onnx.save(proto, path)
    model = load(path)
    task = load_task(None, model)
    state = quantized(path, "sparse[pruning-method=structured,sparsity=0.5]")
    reference = np.stack([o["y"] for o in run_model(model, task)])
    pruned = np.stack([o["y"] for o in run_model(export(state), task)])
    dense = np.stack([o["y"] for o in run_model(export(quantized(path, "int8")), task)])
    assert sqnr_db(reference, pruned) > sqnr_db(reference, dense) - 8
    assert sqnr_db(reference, pruned) > 20


def test_a_graph_without_free_channels_is_refused(cnn_path):
    with pytest.raises(UserError, match="No channel"):
        quantized(cnn_path, "sparse[pruning-method=structured]")


def test_channels_stay_in_whole_vectors():
    assert [kept_count(64, s) for s in (0.1, 0.5, 0.99)] == [56, 32, 8]
    assert kept_count(10, 0.5) == 5 and kept_count(1, 0.9) == 1


def test_schedules_end_at_the_wanted_sparsity():
    shapes = {}
    for name in ("linear", "cubic", "exponential"):
        stages = schedule(SparseOptions(sparsity=0.6, pruning_schedule=name, epochs=6))
        assert len(stages) == 3 and np.isclose(stages[-1], 0.6)
        assert stages == sorted(stages)
        shapes[name] = stages[0]
    assert shapes["linear"] < shapes["exponential"] < shapes["cubic"]
    assert len(schedule(SparseOptions(structured_pattern="2:4"))) == 1


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"sparsity": 1.0}, "between 0 and 1"),
        ({"sparsity": -0.1}, "between 0 and 1"),
        ({"structured_pattern": "5:4"}, "0 < n < m"),
        ({"structured_pattern": "2-4"}, "not n:m"),
        ({"pruning_method": "magnitud"}, "magnitude"),
        ({"pruning_method": "structured", "structured_pattern": "2:4"}, "takes no pattern"),
        ({"pruning_schedule": "cube"}, "cubic"),
        ({"learning_rate": 0.0}, "learning-rate"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_bad_options(options, part):
    with pytest.raises(UserError, match=part):
        SparseOptions(**options)


def test_no_pattern_is_none():
    assert parse_pattern("none") is None and parse_pattern("") is None
    assert parse_pattern("4:8") == Pattern(4, 8)
