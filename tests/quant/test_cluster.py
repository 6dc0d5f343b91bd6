"""Codebooks: optimal levels, entropy-coded storage, and the method on small graphs."""

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.codebook import linear_levels, nearest, optimal_levels, pack, unpack, unpack_all
from quant.errors import UserError
from quant.htp.compile import compile_context
from quant.htp.emulator import HtpEmulator
from quant.htp.options import HtpOptions
from quant.htp.soc import get_soc
from quant.methods.cluster import ClusterOptions, download, stored
from quant.methods.grammar import export, parse_methods, quantize
from quant.model import load, save
from quant.task import load_task


def quantized(path, variant):
    model = load(path)
    (parsed,) = parse_methods(variant)
    return quantize(model, load_task(None, model), parsed)


def weight_codes(state, tmp_path):
    """Integer weights of the exported graph, by name: what the compiler gets."""
    save(export(state), tmp_path / "q.onnx")
    found = {
        t.name: onnx.numpy_helper.to_array(t)
        for t in onnx.load(tmp_path / "q.onnx").graph.initializer
    }
    return {n: found[f"{n}_quantized"] for n in state.codebooks}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-4, 4), st.floats(0.01, 5)), min_size=1, max_size=30),
    st.integers(1, 4),
    st.booleans(),
)
def test_levels_are_optimal_among_all_choices_of_integers(pairs, count, zero):
    x, w = np.array(pairs).T
    levels = optimal_levels(x, w, count, -4, 4, zero=zero)
    assert len(levels) <= count
    assert not zero or 0 in levels

    def cost(chosen):
        return float((w * np.abs(x[:, None] - np.array(chosen)).min(1) ** 2).sum())

    best = min(cost(c) for c in itertools.combinations(range(-4, 5), count) if not zero or 0 in c)
    assert cost(levels) <= best + 1e-9
    assert np.isclose(float((w * (x - nearest(levels, x)) ** 2).sum()), cost(levels))


def test_importance_moves_the_levels():
    x = np.array([0.0, 10.0, 11.0, 12.0])
    plain = optimal_levels(x, np.ones(4), 2, -127, 127)
    weighted = optimal_levels(x, np.array([1e-6, 1, 1, 100]), 2, -127, 127)
    assert plain.tolist() == [0, 11]
    assert weighted.tolist() != [0, 11] and 12 in weighted


def test_linear_levels_are_even_and_hold_zero():
    assert linear_levels(5, -100, 100).tolist() == [-100, -50, 0, 50, 100]
    assert 0 in linear_levels(8, -127, 127) and len(linear_levels(8, -127, 127)) == 8
    assert linear_levels(300, -7, 7).tolist() == list(range(-7, 8))


@pytest.mark.parametrize(("count", "size"), [(1, 5), (16, 200_000), (256, 50_000), (3, 1)])
def test_packed_codes_come_back_and_take_their_entropy(count, size):
    rng = np.random.default_rng(count)
    levels = np.sort(rng.choice(np.arange(-127, 128), min(count, 255), replace=False))
    p = rng.dirichlet(np.full(len(levels), 2.0))
    codes = rng.choice(levels, size, p=p).reshape(-1, 1)
    data = pack(codes)
    assert np.array_equal(unpack(data), codes)
    if size > 10_000:
        share = np.unique(codes, return_counts=True)[1] / size
        entropy_bytes = -(share * np.log2(share)).sum() * size / 8
        assert entropy_bytes < len(data) < entropy_bytes * 1.02 + 1200


def test_damaged_codes_are_refused():
    data = pack(np.arange(-50, 50).repeat(40))
    for bad in (b"", b"XXXX" + data[4:], data[:-3], data + b"\0\0"):
        with pytest.raises(UserError, match="damaged"):
            unpack(bad)


def test_exported_weights_are_the_codebooks_own(cnn_path, tmp_path):
    state = quantized(cnn_path, "cluster[clusters=8]")
    codes = weight_codes(state, tmp_path)
    assert set(codes) == set(state.codebooks)
    assert set(codes) == {"w0", "w2", "wf"}
    for name, array in codes.items():
        assert np.unique(array).size <= 8
        assert set(np.unique(array).tolist()) <= set(state.codebooks[name].tolist())
    assert any("at most 8 distinct weights" in n for n in state.notes)
    assert any("depthwise layers keep their own weights: w1" in n for n in state.notes)


def test_the_compiled_context_computes_with_the_codebooks_integers(tmp_path):
    """Unit vectors through the HTP emulator give the context's own weights back, row by row."""
    rows, columns = 24, 16
    weight = np.random.default_rng(5).normal(size=(rows, columns)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "units",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, rows])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, columns])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset), tmp_path / "units.onnx")
    units = np.eye(rows, dtype=np.float32)[:, None]
    np.savez(tmp_path / "task.npz", x=units, calibration_x=units)
    model = load(tmp_path / "units.onnx")
    (variant,) = parse_methods("int8[activation-bits=16]+cluster[clusters=8]")
    state = quantize(model, load_task(tmp_path / "task.npz", model), variant)
    (name,) = state.codebooks
    save(export(state), tmp_path / "q.onnx")
    compiled = compile_context(tmp_path / "q.onnx", get_soc("sm8650"), HtpOptions(), tmp_path / "c")
    with HtpEmulator(compiled.context_onnx) as emulator:
        outputs = np.stack([out["y"][0] for out in emulator.run([{"x": u} for u in units])])
    integers = outputs / state.plan.tensors[name].scale.reshape(1, -1)
    assert np.abs(integers - np.rint(integers)).max() < 0.1
    assert np.array_equal(np.rint(integers), state.plan.codes[name])
    assert np.unique(np.rint(integers)).size <= 8


def test_optimal_levels_beat_linear_ones(cnn_path):
    def error(variant):
        state = quantized(cnn_path, variant)
        before = quantized(cnn_path, "int8")
        total = 0.0
        for name, q in state.plan.codes.items():
            reference = before.model.ir.graph.initializers[name].const_value.numpy()
            total += float(((reference - state.plan.tensors[name].dequantize(q)) ** 2).sum())
        return total

    assert error("cluster[clusters=8]") < 0.8 * error(
        "cluster[clusters=8,adaptive-centroids=false]"
    )


def test_it_clusters_what_a_hybrid_plan_made_integer(cnn_path, tmp_path):
    state = quantized(cnn_path, "hybrid+cluster[clusters=8]")
    plain = quantized(cnn_path, "hybrid")
    planned = {n for n in ("w0", "w2", "wf") if n in plain.plan.tensors}
    assert set(state.codebooks) == planned and planned
    for name, codes in weight_codes(state, tmp_path).items():
        assert np.unique(codes).size <= 8
        assert state.plan.tensors[name].bits == plain.plan.tensors[name].bits


@pytest.mark.parametrize("variant", ["cluster[clusters=8]+int8", "int4+cluster[clusters=8]"])
def test_levels_survive_a_plan_in_either_order(cnn_path, tmp_path, variant):
    state = quantized(cnn_path, variant)
    codes = weight_codes(state, tmp_path)
    assert all(np.unique(c).size <= 8 for c in codes.values())
    bits = {state.plan.tensors[n].bits for n in codes}
    assert bits == ({4} if "int4" in variant else {8})


def test_pruned_weights_stay_zero_under_clustering(cnn_path):
    state = quantized(cnn_path, "sparse[structured-pattern=2:4]+cluster[clusters=8]")
    codes = state.plan.codes["w2"].reshape(16, 4, 4)
    assert ((codes != 0).sum(2) <= 2).all()
    assert 0 in state.codebooks["w2"]


def test_embedding_tables_are_clustered_and_download_is_the_files(encoder_path):
    state = quantized(encoder_path, "cluster[clusters=8]")
    table = next(n for n in state.codebooks if "table" in n)
    assert np.unique(state.plan.codes[table]).size <= 8
    original = load(encoder_path)
    size = download(state, original)
    arrays = [v.const_value.numpy() for v in original.ir.graph.initializers.values()]
    assert abs(size.float_bytes - sum(a.nbytes for a in arrays)) < 200
    restored = unpack_all(stored(state))
    assert set(restored) == set(state.codebooks)
    for name, codes in restored.items():
        assert np.array_equal(codes, state.plan.codes[name].astype(np.int64))
    with pytest.raises(UserError, match="damaged"):
        unpack_all(stored(state)[:-2])
    weights = sum(state.plan.codes[n].size for n in state.codebooks)
    assert size.packed_bytes == len(stored(state))
    assert size.packed_bytes < weights * 0.5 + 600 * len(
        state.codebooks
    )  # three bits of eight, and heads
    assert f"{size.total_bytes:,} bytes to download" in state.notes[-1]


def test_float_levels_leave_the_graph_float(cnn_path):
    state = quantized(cnn_path, "cluster[clusters=16,optimize-for=float]")
    assert not state.plan.tensors
    for name in ("w0", "w1", "w2", "wf"):
        data = state.model.ir.graph.initializers[name].const_value.numpy()
        assert 8 < np.unique(data).size <= 16


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"clusters": 1}, "8 to 256"),
        ({"clusters": 257}, "8 to 256"),
        ({"optimize_for": "hexagn"}, "hexagon"),
        ({"learning_rate": 0.0}, "learning-rate"),
        ({"epochs": 0}, "epochs"),
        ({"fine_tune": True, "optimize_for": "float"}, "integer grid"),
    ],
)
def test_bad_options(options, part):
    with pytest.raises(UserError, match=part):
        ClusterOptions(**options)
