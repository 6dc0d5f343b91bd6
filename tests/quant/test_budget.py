"""The search: fronts that only get worse, budgets kept or refused with the closest."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from quant.budget import weight_front, within_size
from quant.errors import UserError
from quant.methods.grammar import export, make_variant, parse_methods, quantize
from quant.methods.hybrid import HybridOptions, apply
from quant.model import load
from quant.search import parse_drop, parse_share
from quant.simplify import simplify
from quant.state import Quantized
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
    return simplify(model), load_task(SAMPLE / "task.npz", model)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    model, _ = graphs.transformer(tmp_path_factory.mktemp("m") / "m.onnx")
    return simplify(model), load_task(None, model, model_type="text")


def _wide_share(done):
    """From the plan itself: activations at 16 bits over all activations."""
    names = [n for n in done.plan.tensors if n not in done.model.ir.graph.initializers]
    own = [n for n in names if not n.endswith(("_as8", "_as16"))]
    return np.mean([done.plan.tensors[n].bits == 16 for n in own])


def _stored_mb(done):
    """Bytes of the integers and scales in the exported graph."""
    total = 0.0
    for name, value in export(done).ir.graph.initializers.items():
        if value.const_value is None or value.dtype.name == "INT64":
            continue
        described = name.removesuffix("_scale").removesuffix("_zero_point")
        if described != name:  # of an activation, or derived as a bias's is: not a weight's
            encoding = done.plan.tensors.get(described)
            if encoding is None or encoding.bits == 32 or encoding.axis is None:
                continue
        total += value.const_value.size * value.dtype.itemsize
    return total / 1e6


def test_random_budgets_are_kept_or_refused_with_the_closest(cnn, text):
    rng = np.random.default_rng(7)
    kept = refused = 0
    for model, task, whole in ((*cnn, 0.17), (*text, 0.008)):
        for low in (0.3, 0.6, 0.9):
            size, share = float(rng.uniform(low, low + 0.2) * whole), float(rng.uniform(0, 1))
            options = HybridOptions(target_size=size, max_a16=str(share), sensitivity_samples=1)
            try:
                done = apply(Quantized(model), task, options)
            except UserError as error:
                refused += 1
                least = float(error.hint.split()[1])
                assert least > size
                closest = HybridOptions(
                    target_size=least * 1.001, max_a16=str(share), sensitivity_samples=1
                )
                assert _stored_mb(apply(Quantized(model), task, closest)) <= least * 1.001
                continue
            kept += 1
            assert _stored_mb(done) <= size
            chosen = done.reports["sensitivity"]["chosen"]
            assert chosen["share_above_8_bits"] <= share
            assert _stored_mb(done) <= chosen["stored_bytes"] / 1e6 <= size
    assert kept >= 3 and refused >= 1


def test_wide_activations_go_where_they_help(cnn):
    model, task = cnn
    errors = []
    for limit in (0.0, 0.3, 1.0):
        done = apply(Quantized(model), task, HybridOptions(max_a16=str(limit)))
        assert _wide_share(done) <= limit + 0.02
        errors.append(done.reports["sensitivity"]["chosen"]["predicted_activation_error"])
    assert errors[0] > 1.5 * errors[1] > 15 * errors[2]


def test_the_front_in_the_report_only_gets_worse(cnn):
    model, task = cnn
    done = apply(Quantized(model), task, HybridOptions(sensitivity_analysis=True))
    document = json.loads(json.dumps(done.reports["sensitivity"]))
    for front, cost in (
        ("activation_front", "share_above_8_bits"),
        ("weight_front", "stored_bytes"),
    ):
        costs = [p[cost] for p in document[front]]
        errors = [p["predicted_error"] for p in document[front]]
        assert len(costs) > 10
        assert costs == sorted(costs, reverse=True)
        assert errors[-1] > 10 * errors[0]


def test_accuracy_budget_is_measured(cnn):
    model, task = cnn
    done = quantize(model, task, make_variant("hybrid", max_accuracy_drop="1pt"))
    note = next(n for n in done.notes if n.startswith("accuracy drop"))
    assert float(note.split()[2].rstrip("pt,")) <= 1.0
    # One point is plenty here; the output part stays in fp16 where nothing limits it.
    assert {r.bits for r in done.layers} == {4, 16}


def test_an_accuracy_budget_that_cannot_be_kept_names_the_closest(text):
    model, task = text
    options = HybridOptions(max_accuracy_drop="0.0000001pt", max_a16="0%")
    with pytest.raises(UserError, match=r"the most precise one loses .*pt"):
        apply(Quantized(model), task, options)


def test_parts_that_the_user_named_are_not_searched(cnn):
    model, task = cnn
    options = HybridOptions(target_size=0.2, conv_precision="int8", output_precision="int4")
    bits = {r.name: r.bits for r in apply(Quantized(model), task, options).layers}
    assert bits.pop("logits.weight") == 4
    assert set(bits.values()) == {8}
    with pytest.raises(UserError, match="as small as"):
        apply(Quantized(model), task, HybridOptions(target_size=0.1, conv_precision="int8"))


def test_weights_put_back_where_they_fit():
    errors = {"a": {8: 0.0, 4: 1.0}, "b": {8: 0.0, 4: 9.0}, "c": {8: 0.0, 4: 5.0}}
    sizes = {"a": {8: 10, 4: 5}, "b": {8: 100, 4: 50}, "c": {8: 60, 4: 30}}
    functions = {n: s.__getitem__ for n, s in sizes.items()}
    steps = weight_front(functions, errors, base=0)
    # By error per byte: c (5/30), b (9/50), a (1/5).
    assert [s.point.cost for s in steps] == [170, 140, 90, 85]
    found = within_size(steps, 125, functions, errors)
    # Both c and b went; 90 bytes leave 35, into which c fits again.
    assert (found.point.cost, found.bits) == (120, {"a": 8, "b": 4, "c": 8})
    assert within_size(steps, 86, functions, errors).point.cost == 85
    with pytest.raises(UserError, match=r"Allow 8\.5e-05 MB"):
        within_size(steps, 80, functions, errors)


@pytest.mark.parametrize(
    ("text", "value"), [("0.5pt", (0.005, False)), ("5%", (0.05, True)), ("0.5", None)]
)
def test_units_of_a_drop(text, value):
    if value is None:
        with pytest.raises(UserError, match="no unit"):
            parse_drop(text)
    else:
        assert parse_drop(text) == pytest.approx(value)


def test_share_is_percent_or_fraction():
    assert parse_share("30%", "max-a16") == pytest.approx(parse_share("0.3", "max-a16"))
    with pytest.raises(UserError, match="not a share"):
        parse_share("130%", "max-a16")


def test_a_latency_budget_is_refused_with_the_reason():
    with pytest.raises(UserError, match="no latency predictor"):
        parse_methods("hybrid[target-latency=2.5]")
