"""Function-preserving rewrites, and what they do for 8 bits."""

import dataclasses

import numpy as np
import pytest

from quant import transformer
from quant.evaluate import run_model
from quant.masks import tame
from quant.methods.grammar import export, make_variant, quantize
from quant.model import load
from quant.pipeline import Pipeline, run
from quant.report import sqnr_db
from quant.simplify import simplify
from quant.state import Quantized
from quant.task import load_task

from .conftest import build_encoder


def _with_padding(task, keep=10):
    def cut(arrays):
        mask = np.array(arrays["attention_mask"])
        mask[..., keep:] = 0
        return {**arrays, "attention_mask": mask}

    return dataclasses.replace(task, inputs=cut(task.inputs), calibration=cut(task.calibration))


def _sqnr(model, other, task, n=4, keep=None):
    rows = zip(run_model(model, task, n), run_model(other, task, n), strict=True)
    return min(sqnr_db(a["y"][:, :keep], b["y"][:, :keep]) for a, b in rows)


@pytest.mark.parametrize("outliers", [[3], [5, 0, 17], list(range(8))])
@pytest.mark.parametrize("size", [32, 96])
def test_rotation_is_orthogonal_keeps_ones_and_flattens(size, outliers):
    q = transformer.flat_rotation(size, outliers)
    np.testing.assert_allclose(q @ q.T, np.eye(size), atol=1e-12)
    np.testing.assert_allclose(np.ones(size) @ q, np.ones(size), atol=1e-12)
    first = np.eye(size)[outliers[0]] - 1.0 / size
    turned = first @ q / np.linalg.norm(first)
    np.testing.assert_allclose(np.abs(turned), size**-0.5, atol=1e-12)


def test_rewrites_keep_the_function(encoder_path):
    model = load(encoder_path)
    task = _with_padding(load_task(None, model))
    simple = simplify(model)
    prepared = transformer.prepare(simple, task)
    assert _sqnr(model, simple, task) > 100
    assert _sqnr(model, prepared, task, keep=10) > 90
    ops = [n.op_type for n in prepared.ir.graph]
    assert ops.count("Div") == 0  # the score scale went into the query weights


def test_rotation_flattens_the_residual_stream(encoder_path):
    model = load(encoder_path)
    task = load_task(None, model)
    simple = simplify(model)
    prepared = transformer.prepare(simple, task)

    def worst(m):
        names = [n.inputs[0].name for n in m.ir.graph if n.op_type == "LayerNormalization"]
        channels = transformer.channel_statistics(m, task, names)
        return max(c.peak.max() / np.median(c.peak) for c in channels.values())

    assert worst(prepared) < 0.5 * worst(simple)


def test_eight_bits_gain_from_the_rewrites(encoder_path):
    model = load(encoder_path)
    task = load_task(None, model)
    simple = simplify(model)
    quality = [
        _sqnr(model, export(run(Quantized(simple), task, Pipeline(smooth=smooth))), task)
        for smooth in (False, True)
    ]
    assert quality[1] > quality[0] + 3.0


@pytest.mark.parametrize("mask", [-3.4e38, -1e4])
def test_mask_constants_do_not_set_the_range(tmp_path, mask):
    model = load(build_encoder(tmp_path / "m.onnx", mask=mask))
    task = _with_padding(load_task(None, model))
    tamed = tame(simplify(model), task)
    far = tamed.model.ir.graph.initializers["far"].const_value.numpy()
    assert -200 < float(far) < -10
    assert _sqnr(model, tamed.model, task, keep=10) > 60
    state = quantize(model, task, make_variant("int8", activation_bits=16))
    assert _sqnr(model, export(state), task, keep=10) > 18
