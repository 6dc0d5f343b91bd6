"""The methods as a whole: options, odd data, and what each level buys."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from quant.errors import UserError
from quant.evaluate import evaluate_outputs, run_model, run_ort
from quant.figures import Provenance
from quant.methods.grammar import export, make_variant, parse_methods, quantize
from quant.model import load, save
from quant.task import load_task


def _quality(model, task, variant, n=8):
    reference = run_model(model, task, n)
    outputs = run_model(export(quantize(model, task, variant)), task, n)
    return evaluate_outputs(task, reference, outputs, Provenance.ORT_CPU)


def test_levels_do_not_get_worse(cnn_path):
    model = load(cnn_path)
    task = load_task(None, model)
    quality = [
        _quality(
            model,
            task,
            make_variant(
                "per-channel", optimization_level=level, weight_bits=4, activation_bits=16
            ),
        ).sqnr_db
        for level in range(4)
    ]
    assert quality[1] > quality[0]
    assert quality[3] > quality[0] + 3.0


def test_wider_is_better(cnn_path):
    model = load(cnn_path)
    task = load_task(None, model)
    narrow = _quality(model, task, make_variant("int8")).sqnr_db
    wide = _quality(model, task, make_variant("int8", activation_bits=16)).sqnr_db
    four = _quality(model, task, make_variant("int4", keep_8bit_share=0.0)).sqnr_db
    assert wide > narrow > four > 5.0


def test_int4_keeps_the_costliest_layers_within_the_share(cnn_path):
    model = load(cnn_path)
    task = load_task(None, model)

    def bits(share):
        state = quantize(model, task, make_variant("int4", keep_8bit_share=share))
        return {r.name: r.bits for r in state.layers}

    sizes = {"w0": 144, "w1": 144, "w2": 256, "wf": 160}
    assert set(bits(0.0).values()) == {4}
    kept = [name for name, b in bits(0.3).items() if b == 8]
    assert kept
    assert sum(sizes[name] for name in kept) <= 0.3 * sum(sizes.values())


@pytest.mark.parametrize(
    "text", ["int8", "int4", "per-channel", "per-channel[optimization-level=3]"]
)
@pytest.mark.parametrize("kind", ["zeros", "constant", "dead channel"])
def test_degenerate_data_stays_finite(cnn_path, kind, text):
    model = load(cnn_path)
    task = load_task(None, model)
    data = np.array(task.calibration["x"])
    if kind == "zeros":
        data[:] = 0.0
    elif kind == "constant":
        data[:] = 3.0
    else:
        weight = model.ir.graph.initializers["w2"].const_value.numpy()
        changed = np.array(weight)
        changed[3] = 0.0
        model.ir.graph.initializers["w2"].const_value = ir.tensor(changed, name="w2")
    task = dataclasses.replace(task, calibration={"x": data})
    state = quantize(model, task, parse_methods(text)[0])
    scales = [e.scale for e in state.plan.tensors.values()]
    assert all(np.isfinite(s).all() and (s > 0).all() for s in scales)
    (out,) = run_model(export(state), task, 1)
    assert np.isfinite(out["y"]).all()


def test_per_tensor_weights_and_folded_activations(cnn_path):
    model = load(cnn_path)
    task = load_task(None, model)
    state = quantize(
        model, task, make_variant("per-channel", weight_method="per-tensor", optimization_level=0)
    )
    assert {r.granularity for r in state.layers} == {"per-tensor"}
    folded = make_variant("per-channel", activation_method="per-channel", optimization_level=0)
    assert _quality(model, task, folded).sqnr_db > 25.0


def test_optimized_zero_points_differ_from_min_max(cnn_path):
    model = load(cnn_path)
    task = load_task(None, model)
    plans = [
        quantize(
            model,
            task,
            make_variant("per-channel", optimize_zero_points=searched, optimization_level=0),
        ).plan
        for searched in (False, True)
    ]
    assert float(plans[1].tensors["a"].scale) < float(plans[0].tensors["a"].scale)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int8[optimize-for=mobil]", "mobile"),
        ("int8[optimize-for=mobile,activation-bits=16]", "8-bit weights and activations"),
        ("int4[optimize-for=mobile]", "8-bit weights and activations"),
        ("int4[keep-8bit-share=1.5]", "not in"),
        ("per-channel[optimization-level=4]", "0, 1, 2 or 3"),
        ("per-channel[weight-method=per-chanel]", "per-channel"),
        ("per-channel[weight-bits=6]", "4 or 8"),
    ],
)
def test_bad_options(text, message):
    with pytest.raises(UserError, match=message):
        parse_methods(text)


def test_general_leaves_the_structure_alone(encoder_path):
    model = load(encoder_path)
    task = load_task(None, model)
    hexagon = quantize(model, task, make_variant("int8"))
    general = quantize(model, task, make_variant("int8", optimize_for="general"))

    def count(state, op):
        return sum(n.op_type == op for n in state.model.ir.graph)

    assert count(general, "Div") == count(model_state(model), "Div") == 2
    assert count(hexagon, "Div") == 0


def model_state(model):
    from quant.state import Quantized

    return Quantized(model)


def test_evaluation_of_the_float_model_is_perfect(cnn_path, tmp_path):
    model = load(cnn_path)
    task = load_task(None, model)
    save(model, tmp_path / "m.onnx")
    outputs = run_ort(tmp_path / "m.onnx", task, 3)
    result = evaluate_outputs(task, outputs, outputs, Provenance.ORT_CPU)
    assert result.sqnr_db == np.inf
    assert result.agreement == 1.0
    assert (result.n, result.value) == (3, None)


def test_float_nan_in_calibration_names_the_tensor(builder, tmp_path):
    b = builder
    b.node("Log", ["x"], "l")
    b.node("Conv", ["l", b.weight("w", 2, 2, 1, 1)], "y")
    path = b.save(tmp_path / "m.onnx", [("x", [1, 2, 2, 2])], [("y", [1, 2, 2, 2])], opset=21)
    model = load(path)
    task = load_task(None, model)  # standard normal inputs: the logarithm of a negative is NaN
    with pytest.raises(UserError, match="'l' is NaN"):
        quantize(model, task, make_variant("int8"))
