"""The analysis against what it stands for: exporting and running each tensor's quantization."""

from pathlib import Path

import numpy as np
import pytest

from quant.encoding import QuantPlan, asymmetric
from quant.evaluate import run_model
from quant.graph import activations, folded_into, initializer_uses, name_of
from quant.model import load
from quant.planning import PlanOptions, activation_ranges, weight_encoding
from quant.rewrite import insert_qdq
from quant.sensitivity import LAYERS, OTHERS, analyse
from quant.simplify import simplify
from quant.task import load_task

SAMPLE = Path(__file__).parents[2] / "host" / "samples" / "data" / "fashion_cnn"


@pytest.fixture(scope="module")
def measured():
    model = simplify(load(SAMPLE / "model.onnx"))
    task = load_task(SAMPLE / "task.npz", model)
    ranges = activation_ranges(model, task, PlanOptions(), {})
    return model, task, ranges, analyse(model, task, ranges, samples=4)


def _error(model, task, plan, n=48):
    name = model.outputs[0].name
    a = np.stack([o[name] for o in run_model(model, task, n)])
    b = np.stack([o[name] for o in run_model(insert_qdq(model, plan), task, n)])
    return float(np.square(a - b).sum() / np.square(a).sum())


def _correlation(a, b):
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    return np.corrcoef(*ranks)[0, 1]


def test_weights_rank_as_a_full_sweep_on_other_samples(measured):
    model, task, _, found = measured
    ours, full = [], []
    for use in initializer_uses(model.ir.graph):
        if use.role != "weight":
            continue
        for bits in (8, 4):
            encoding = weight_encoding(use, PlanOptions(weight_bits=bits))
            ours.append(found.weights[name_of(use.value)][bits])
            full.append(_error(model, task, QuantPlan({name_of(use.value): encoding})))
    assert len(ours) == 28
    assert _correlation(ours, full) > 0.9
    assert np.median(np.abs(np.log10(np.array(ours) / np.array(full)))) < 0.3


def test_activations_have_the_error_of_the_exported_graph(measured):
    model, task, ranges, found = measured
    ours, full = [], []
    for value in activations(model.ir.graph):
        name = name_of(value)
        if folded_into(value) is None and name in found.activations:
            ours.append(sum(found.activations[name].values()))
            full.append(_error(model, task, QuantPlan({name: asymmetric(*ranges[name], 8)})))
    assert len(ours) > 12
    assert np.corrcoef(np.log(ours), np.log(full))[0, 1] > 0.85


def test_readers_are_told_apart(measured):
    _, _, _, found = measured
    assert set(found.activations["image"]) == {LAYERS}
    assert set(found.activations["logits"]) == {OTHERS}
    assert all(v > 0 for kinds in found.activations.values() for v in kinds.values())


def test_one_sample_and_the_given_weights_are_used(measured):
    model, task, ranges, _ = measured
    name = "stem.weight"
    data = np.zeros((32, 1, 3, 3), np.float32)
    found = analyse(
        model,
        task,
        ranges,
        weight_bits=(4,),
        weights={name: {4: data}},
        measure_activations=False,
        samples=1,
    )
    assert found.samples == 1 and not found.activations
    others = [e[4] for n, e in found.weights.items() if n != name]
    assert found.weights[name][4] > 5 * max(others)  # a network without its first layer
