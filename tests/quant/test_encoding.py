"""Encodings against onnxruntime's own QuantizeLinear and DequantizeLinear."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper

from quant.encoding import asymmetric, bias_encoding, symmetric

_ONNX = {(8, False): 2, (8, True): 3, (16, False): 4, (16, True): 5, (4, True): 22}


def _ort_fake(x, encoding):
    kind = _ONNX[encoding.bits, encoding.signed]
    attributes = {} if encoding.axis is None else {"axis": encoding.axis}
    if encoding.block_size:
        attributes["block_size"] = encoding.block_size
    shape = list(encoding.scale.shape)
    zero = helper.make_tensor("z", kind, shape, encoding.zero_point.astype(np.int64).reshape(-1))
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, x.shape)],
        [helper.make_tensor_value_info("y", 1, x.shape)],
        [onnx.numpy_helper.from_array(encoding.scale, "s"), zero],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"x": x})[0]


_VALUES = st.floats(-1e4, 1e4, width=32)


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float32, (4, 32), elements=_VALUES),
    st.sampled_from(["u8", "u16", "s8", "s16", "s8c", "s4c", "s4b"]),
)
def test_fake_quantization_equals_onnxruntime(x, kind):
    if kind[0] == "u":
        encoding = asymmetric(float(x.min()), float(x.max()), int(kind[1:]))
    elif kind.endswith("c"):
        encoding = symmetric(np.abs(x).max(1), int(kind[1]), axis=0)
    elif kind.endswith("b"):
        limits = np.abs(x).reshape(4, 2, 16).max(2)
        encoding = symmetric(limits, 4, axis=1, block_size=16)
    else:
        encoding = symmetric(float(np.abs(x).max()), int(kind[1:]))
    theirs = _ort_fake(x, encoding)
    ours = encoding.fake(x)
    if encoding.symmetric:  # ONNX also uses the code -2**(bits-1), which only differs at the limit
        limit = encoding.qmax * encoding.scale.max()
        theirs = np.maximum(theirs, -np.float32(limit))
        ours = np.maximum(ours, -np.float32(limit))
    np.testing.assert_array_equal(ours, theirs)


def test_asymmetric_range_holds_an_exact_zero():
    for low, high in ((0.5, 3.0), (-2.0, -1.0), (-1.0, 3.0)):
        encoding = asymmetric(low, high, 8)
        assert encoding.fake(np.zeros(1, np.float32))[0] == 0.0
        assert 0 <= int(encoding.zero_point) <= 255


def test_zero_channel_encodes_to_zeros_with_a_usable_scale():
    encoding = symmetric(np.array([0.0, 2.0, 4.0]), 8, axis=0)
    weights = np.array([[0.0, 0.0], [2.0, -1.0], [4.0, 1.0]], np.float32)
    assert encoding.quantize(weights)[0].tolist() == [0, 0]
    assert encoding.scale[0] == encoding.scale[1] > 0
    assert np.isfinite(symmetric(np.zeros(3), 4, axis=0).scale).all()


def test_constant_zero_activation_has_a_finite_scale():
    encoding = asymmetric(0.0, 0.0, 8)
    assert encoding.scale > 0
    assert encoding.fake(np.zeros(3, np.float32)).tolist() == [0.0, 0.0, 0.0]


def test_bias_scale_is_the_product_of_its_operands():
    weight = symmetric(np.array([1.27, 2.54]), 8, axis=0)
    encoding = bias_encoding(np.array(0.5, np.float32), weight)
    np.testing.assert_allclose(encoding.scale, [0.005, 0.01], rtol=1e-6)
    assert encoding.quantize(np.array([1.0, -1.0], np.float32)).tolist() == [200, -100]


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_symmetric_codes_never_use_the_most_negative_value(bits):
    x = np.array([-10.0, 10.0], np.float32)
    codes = symmetric(1.0, bits).quantize(x).astype(int)
    assert codes.tolist() == [-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1]
