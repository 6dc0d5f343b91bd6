"""hybrid: parts, layers and budgets on small graphs; the HTP takes the mix."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from quant.errors import UserError
from quant.evaluate import run_model
from quant.graph import initializer_uses
from quant.htp.compile import compile_context
from quant.htp.options import HtpOptions
from quant.htp.soc import get_soc
from quant.methods.grammar import export, make_variant, parse_methods, quantize
from quant.methods.hybrid import _float_heads
from quant.mixed import Assignment
from quant.model import load, save
from quant.parts import find_parts, node_key
from quant.report import sqnr_db
from quant.search import Budget, few_rows, needed_roundings, roundings
from quant.task import load_task

_spec = importlib.util.spec_from_file_location(
    "hybrid_graphs", Path(__file__).with_name("hybrid_graphs.py")
)
graphs = sys.modules.setdefault("hybrid_graphs", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(graphs)

SAMPLE = Path(__file__).parents[2] / "host" / "samples" / "data" / "fashion_cnn"
pytestmark = pytest.mark.usefixtures("shared_roundings")


@pytest.fixture(scope="module")
def cnn():
    model = load(SAMPLE / "model.onnx")
    return model, load_task(SAMPLE / "task.npz", model)


def _sqnr(model, task, quantized, n=24):
    reference, ours = run_model(model, task, n), run_model(export(quantized), task, n)
    name = model.outputs[0].name
    return sqnr_db(np.stack([r[name] for r in reference]), np.stack([r[name] for r in ours]))


def test_a_part_in_fp16_has_no_encodings_and_the_rest_is_integer(cnn):
    model, task = cnn
    done = quantize(model, task, make_variant("hybrid"))
    plan = done.plan
    assert "logits.weight" not in plan.tensors and "logits.bias" not in plan.tensors
    assert plan.tensors["stem.weight"].bits == 8
    layers = {row.name: (row.bits, row.granularity) for row in done.layers}
    assert layers["logits.weight"] == (16, "float")
    assert layers["block3_pointwise.weight"] == (8, "per-channel")
    assert _sqnr(model, task, done) > 30


def test_precision_of_a_part_decides_bits_and_loss(cnn):
    model, task = cnn
    results = {}
    for precision in ("int4", "int8", "fp16"):
        done = quantize(model, task, make_variant("hybrid", conv_precision=precision))
        results[precision] = _sqnr(model, task, done)
        bits = {r.bits for r in done.layers if r.op_type == "Conv"}
        assert bits == {{"int4": 4, "int8": 8, "fp16": 16}[precision]}
    assert results["int4"] + 5 < results["int8"] < results["fp16"]


def test_everything_in_fp16_is_the_float_model(cnn):
    model, task = cnn
    done = quantize(model, task, make_variant("hybrid", conv_precision="fp16"))
    assert not done.plan.tensors
    assert export(done).fingerprint == done.model.fingerprint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hybrid[conv-precision=int5]", "int5"),
        ("hybrid[embedding-precision=int4]", "8-bit, 16-bit or fp16 tables"),
        ("hybrid[activation-bits=12]", "12"),
        ("hybrid[calibration-method=minmax]", "min-max"),
    ],
)
def test_a_wrong_option_is_refused(text, said):
    with pytest.raises(UserError, match=said):
        parse_methods(text)


def _config(tmp_path, layers, **more):
    path = tmp_path / "layers.json"
    path.write_text(json.dumps({"version": 1, "layers": layers, **more}))
    return str(path)


def test_fp16_int8_and_int4_in_one_graph_compile_strictly(cnn, tmp_path):
    model, task = cnn
    config = _config(tmp_path, {"block1_*": {"weights": "int8", "activations": "int16"}})
    variant = make_variant("hybrid", conv_precision="int4", layer_wise_config=config)
    done = quantize(model, task, variant)
    assert {r.bits for r in done.layers} == {4, 8, 16}  # 16: a layer in fp16
    assert {done.plan.tensors[n].bits for n in done.plan.tensors if "relu" in n} == {8, 16}
    save(export(done), tmp_path / "m.onnx")
    for name, arch in (("sm8450", 69), ("sm8550", 73), ("sm8650", 75), ("sm8750", 79)):
        soc = get_soc(name)
        assert soc.arch == arch
        compiled = compile_context(tmp_path / "m.onnx", soc, HtpOptions(), tmp_path / name)
        assert compiled.context_bin.stat().st_size > 50_000
        assert compiled.info.arch == arch


def test_layer_wise_config_names_weights_outputs_and_patterns(cnn, tmp_path):
    model, task = cnn
    config = _config(
        tmp_path,
        {
            "*": "int8",
            "stem.weight": "fp16",
            "block1_*": {"weights": "int4", "activations": "int16"},
            "block1_pointwise": "int8",
        },
    )
    done = quantize(model, task, make_variant("hybrid", layer_wise_config=config))
    bits = {r.name.removesuffix(".weight"): r.bits for r in done.layers}
    assert bits.pop("stem") == 16
    assert bits.pop("block1_depthwise") == 4
    assert set(bits.values()) == {8}  # a later line wins
    tensors = done.plan.tensors
    assert tensors["block1_depthwise.relu"].bits == 16
    assert tensors["block1_pointwise.relu"].bits == 16  # "int8" alone leaves activations
    assert tensors["block2_depthwise.relu"].bits == 8
    assert done.plan.converted["block1_pointwise.relu"].bits == 8
    assert _sqnr(model, task, done) > 20


@pytest.mark.parametrize(
    ("layers", "more", "said"),
    [
        ({"stem.wieght": "int8"}, {}, r"Did you mean .*stem\.weight"),
        ({"stem": "int9"}, {}, "int9"),
        ({"stem": {"weight": "int8"}}, {}, "Did you mean weights"),
        ({"stem": {"weights": "fp16", "activations": "int8"}}, {}, "mixes fp16 and integers"),
        ({"stem": 8}, {}, "neither"),
        ({"stem": "int8"}, {"verison": 2}, "Did you mean version"),
    ],
)
def test_a_bad_layer_wise_config_is_refused_by_name(cnn, tmp_path, layers, more, said):
    model, task = cnn
    config = _config(tmp_path, layers, **more)
    with pytest.raises(UserError, match=said):
        quantize(model, task, make_variant("hybrid", layer_wise_config=config))


def test_a_config_that_is_missing_or_not_json(cnn, tmp_path):
    model, task = cnn
    (tmp_path / "bad.json").write_text("{")
    for name, said in (("none.json", "Cannot read"), ("bad.json", "not JSON")):
        with pytest.raises(UserError, match=said):
            quantize(model, task, make_variant("hybrid", layer_wise_config=str(tmp_path / name)))


def test_one_value_read_at_three_widths(tmp_path):
    g = graphs.Graph()
    a = g.node("Conv", "image", g.weight(4, 3, 1, 1))
    readers = [g.node("Conv", a, g.weight(4, 4, 1, 1)) for _ in range(3)]
    both = g.node("Concat", *readers, axis=1)
    model = g.save(tmp_path / "m.onnx", [("image", 1, [1, 3, 8, 8])], both, [1, 12, 8, 8])
    task = load_task(None, model, model_type="vision")
    config = _config(
        tmp_path,
        {
            a: {"activations": "int8"},
            readers[0]: {"weights": "int8", "activations": "int8"},
            readers[1]: {"weights": "int8", "activations": "int16"},
            readers[2]: "fp16",
            both: {"activations": "int16"},
        },
    )
    done = quantize(model, task, make_variant("hybrid", layer_wise_config=config))
    assert done.plan.tensors[a].bits == 8 and a not in done.plan.converted
    assert done.plan.converted[f"{a}_as16"].bits == 16
    assert readers[2] in done.plan.tensors  # a fp16 output that an integer operator reads
    assert done.plan.converted[readers[0]].bits == 16
    assert _sqnr(model, task, done, 4) > 25
    save(export(done), tmp_path / "q.onnx")
    compile_context(tmp_path / "q.onnx", get_soc("sm8650"), HtpOptions(), tmp_path / "out")


def test_an_attention_model_keeps_its_function_in_a_mix(tmp_path):
    model, _ = graphs.transformer(tmp_path / "m.onnx")
    task = load_task(None, model, model_type="text")
    default = quantize(model, task, make_variant("hybrid"))
    bits = {r.op_type: r.bits for r in default.layers}
    assert bits["Gather"] == 8
    assert {r.bits for r in default.layers} == {4, 8, 16}
    assert _sqnr(model, task, default, 8) > 15
    finer = quantize(model, task, make_variant("hybrid", feedforward_precision="int8"))
    assert _sqnr(model, task, finer, 8) > _sqnr(model, task, default, 8) + 3


def test_rounding_only_what_is_taken_changes_nothing(tmp_path):
    model, _ = graphs.transformer(tmp_path / "m.onnx")
    task = load_task(None, model, model_type="text")
    graph = model.ir.graph
    weighted = [u for u in initializer_uses(graph) if u.role == "weight"]
    layers = [u for u in weighted if not few_rows(u.node)]
    assert len(layers) == len(weighted) - 1  # the head sees one row, the others one per token
    widths = {node_key(u.node): 16 for u in layers[1:]}  # the first stays in fp16
    weights = {u.value.name: 4 if i % 2 else 8 for i, u in enumerate(layers)}
    chosen = Assignment(widths, weights)
    needed = needed_roundings(graph, chosen)
    assert sorted(needed) == [4, 8] and not needed[4] & needed[8]
    assert needed[4] | needed[8] == set(weights) - {layers[0].value.name}
    some = roundings(model, task, needed)
    whole = roundings(model, task, {4: None, 8: None})
    assert len(some.by_bits[4].encodings) < len(whole.by_bits[4].encodings)
    some, whole = some.compose(chosen), whole.compose(chosen)
    assert some.encodings.keys() == whole.encodings.keys() and some.encodings
    for name, encoding in whole.encodings.items():
        assert np.array_equal(some.encodings[name].scale, encoding.scale)
        assert np.array_equal(some.codes.get(name, 0), whole.codes.get(name, 0))
    assert some.model.fingerprint == whole.model.fingerprint


def test_a_part_in_fp16_is_refused_by_name_where_the_htp_has_none(cnn, tmp_path):
    model, task = cnn
    soc, target = get_soc("sm8350"), tmp_path / "m.onnx"
    save(export(quantize(model, task, make_variant("hybrid"))), target)
    with pytest.raises(UserError, match=r"'logits'.*\(Gemm\) in fp16.*sm8350 has no fp16"):
        compile_context(target, soc, HtpOptions(), tmp_path / "out")
    save(export(quantize(model, task, make_variant("hybrid", output_precision="int8"))), target)
    compile_context(target, soc, HtpOptions(), tmp_path / "out")


@pytest.mark.parametrize(
    ("budget", "wanted"),
    [
        (Budget(0.5, None, None, False), {"y"}),
        (Budget(0.1, None, None, False), set()),  # it would be a fifth of what is allowed
        (Budget(0.5, 1e6, None, False), set()),
        (Budget(None, None, 0.01, False), set()),
        (None, set()),
    ],
)
def test_heads_run_in_fp16_where_they_take_little_of_the_budget(tmp_path, budget, wanted):
    """Fifty operators on sixteen rows, and one on the row that their mean leaves."""
    rng = np.random.default_rng(0)
    nodes = [onnx.helper.make_node("Sigmoid", [f"h{i}"], [f"h{i + 1}"], f"n{i}") for i in range(48)]
    nodes += [
        onnx.helper.make_node("MatMul", ["x", "w"], ["h0"], "body"),
        onnx.helper.make_node("ReduceMean", ["h48"], ["row"], "pool", axes=[0], keepdims=1),
        onnx.helper.make_node("Gemm", ["row", "v"], ["y"], "head"),
    ]
    nodes = [nodes[-3], *nodes[:-3], *nodes[-2:]]
    weights = [rng.normal(size=(8, 8)), rng.normal(size=(8, 4))]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [16, 8])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4])],
        [
            onnx.numpy_helper.from_array(w.astype(np.float32), n)
            for w, n in zip(weights, "wv", strict=True)
        ],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), tmp_path / "m.onnx")
    found = load(tmp_path / "m.onnx").ir.graph
    assert set(_float_heads(found, find_parts(found), budget)) == wanted
