"""The torch executor, the simulated quantizer, and the training loop."""

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from quant.datasets import load_dataset
from quant.errors import UserError
from quant.evaluate import run_model
from quant.methods.grammar import export, parse_methods, quantize
from quant.model import load
from quant.report import sqnr_db
from quant.simplify import simplify
from quant.state import Quantized
from quant.task import load_task
from quant.train import session
from quant.train.fake import fake_quantize
from quant.train.fit import Training, _Loss, batch_of, fit, gained
from quant.train.graph import TorchGraph
from quant.train.parameters import Parameters, Trained


@pytest.fixture(autouse=True)
def quiet(tmp_path):
    with session.use(session.Session(tmp_path / "checkpoints", lambda *_: None)):
        yield


def opened(path, variant=None):
    model = load(path)
    task = load_task(None, model)
    if variant is None:
        return Quantized(simplify(model)), task
    (parsed,) = parse_methods(variant)
    return quantize(model, task, parsed), task


@pytest.mark.parametrize("fixture", ["cnn_path", "encoder_path"])
def test_torch_computes_what_onnxruntime_does_several_samples_at_once(fixture, request):
    state, task = opened(request.getfixturevalue(fixture))
    graph = TorchGraph(state.model)
    feeds = batch_of(state.model.inputs, load_dataset("task", state.model, task), np.arange(5))
    graph.check(feeds)
    assert graph.batched
    with torch.no_grad():
        ours = graph(feeds)["y"].numpy()
    ids = {k: v[:5] for k, v in task.calibration.items()}
    from dataclasses import replace

    theirs = np.concatenate([o["y"] for o in run_model(state.model, replace(task, inputs=ids))])
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max() + 1e-5


def test_a_graph_that_joins_samples_runs_one_at_a_time(builder, tmp_path):
    b = builder
    b.constant("all", np.array([0], np.int64))
    b.node("ReduceSum", ["x", "all"], "s", keepdims=1)
    b.node("Add", ["x", "s"], "y")
    model = load(b.save(tmp_path / "m.onnx", [("x", [1, 4])], [("y", [1, 4])]))
    graph = TorchGraph(model)
    feeds = {"x": torch.arange(12.0).reshape(3, 4)}
    graph.check(feeds)
    assert not graph.batched
    assert torch.equal(graph(feeds)["y"], 2 * feeds["x"])


def test_an_unknown_operator_is_named(builder, tmp_path):
    builder.node("Einsum", ["x", "x"], "y", equation="ij,ij->ij")
    model = load(builder.save(tmp_path / "m.onnx", [("x", [1, 4])], [("y", [1, 4])]))
    with pytest.raises(UserError, match="Einsum"):
        TorchGraph(model)


def test_the_fake_quantizer_is_the_encodings_and_has_the_gradients_of_lsq():
    from quant.encoding import asymmetric

    encoding = asymmetric(-1.0, 3.0, 8)
    x = np.random.default_rng(0).uniform(-2, 4, 2000).astype(np.float32)
    value = torch.from_numpy(x).requires_grad_()
    scale = torch.from_numpy(np.array(encoding.scale)).requires_grad_()
    zero = int(encoding.zero_point)
    out = fake_quantize(value, scale, zero, encoding.qmin, encoding.qmax)
    assert np.array_equal(out.detach().numpy(), encoding.fake(x))
    out.sum().backward()
    code = np.rint(x / encoding.scale) + float(encoding.zero_point)
    inside = (code >= 0) & (code <= 255)
    assert np.array_equal(value.grad.numpy(), inside.astype(np.float32))
    step = np.clip(code, 0, 255) - float(encoding.zero_point)
    expected = np.where(inside, step - x / encoding.scale, step).sum()
    assert np.isclose(float(scale.grad), expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("fixture", "variant"),
    [
        ("cnn_path", "int8"),
        ("cnn_path", "int4[activation-bits=8]"),
        ("cnn_path", "cluster[clusters=8]"),
        ("encoder_path", "int8"),
        ("encoder_path", "int4"),
    ],
)
def test_training_sees_the_exported_network(fixture, variant, request):
    """Before the first step: torch's simulation against the QDQ graph in onnxruntime."""
    state, task = opened(request.getfixturevalue(fixture), variant)
    parameters = Parameters(state, Trained())
    graph = TorchGraph(state.model)
    exported = np.concatenate([o["y"] for o in run_model(export(state), task, 4)])
    with torch.no_grad():
        rows = [
            graph(
                {k: torch.from_numpy(v) for k, v in task.feed(state.model, i).items()},
                parameters.initializers(),
                parameters.quantizer,
            )["y"].numpy()
            for i in range(4)
        ]
    ours = np.concatenate(rows)
    # Sums in another order can move a value over a rounding border, never the network elsewhere.
    assert sqnr_db(exported, ours) > 60


def test_nothing_learned_gives_the_state_back(cnn_path):
    state, _ = opened(cnn_path, "int4[activation-bits=8]")
    again = Parameters(state, Trained()).result()
    for name, codes in state.plan.codes.items():
        assert np.array_equal(again.plan.codes[name], codes)
    for name, encoding in state.plan.tensors.items():
        assert np.allclose(again.plan.tensors[name].scale, encoding.scale, rtol=1e-6)


def test_weights_start_inside_their_integers_bin_on_the_side_of_their_float_value(cnn_path):
    state, _ = opened(cnn_path, "int4[activation-bits=8]")
    ratio = state.model.ir.graph.initializers["w2"].const_value.numpy()
    encoding, codes = state.plan.tensors["w2"], state.plan.codes["w2"].astype(np.float32)
    ratio = np.clip(ratio / encoding.scale.reshape(-1, 1, 1, 1), encoding.qmin, encoding.qmax)
    assert (np.rint(ratio) != codes).mean() > 0.02  # second-order rounding chose another integer
    parameters = Parameters(state, Trained())
    start = (parameters.leaves["weight w2"] * parameters._weights["w2"].reference).detach().numpy()
    assert np.array_equal(np.rint(start), codes)
    inside = np.abs(ratio - codes) < 0.49
    assert np.allclose(start[inside], ratio[inside], atol=1e-4)
    assert np.allclose(np.abs(start - codes)[~inside], 0.49, atol=1e-4)


def coarse(cnn_path):
    """A state that has much to gain: nearest rounding to four bits."""
    model = load(cnn_path)
    (variant,) = parse_methods("int4[activation-bits=8]")
    task = load_task(None, model)
    state = quantize(model, task, variant)
    from dataclasses import replace

    from quant.encoding import QuantPlan

    plan = QuantPlan(state.plan.tensors, {}, state.plan.converted)
    return replace(state, plan=plan), task


def test_training_lowers_the_held_out_loss_and_the_export_agrees(cnn_path):
    state, task = coarse(cnn_path)
    data = load_dataset("task", state.model, task)
    fitted = fit(state, state.teacher, task, data, Training(epochs=30, learning_rate=3e-3))
    assert fitted.kept and fitted.after.mean() < 0.8 * fitted.before.mean()
    reference = np.stack([o["y"] for o in run_model(state.teacher, task)])

    def error(s):
        return float(
            np.square(np.stack([o["y"] for o in run_model(export(s), task)]) - reference).mean()
        )

    assert error(fitted.state) < error(state)


def test_only_a_certain_gain_is_one():
    before = np.full(100, 1.0)
    noise = np.random.default_rng(0).standard_normal(100)
    noise -= noise.mean()
    assert gained(before, before - 0.2 - noise / noise.std())  # two standard errors
    assert not gained(before, before - 0.1 - noise / noise.std())  # one
    assert not gained(before, before + 0.2)
    assert not gained(before, before)
    assert gained(before, before - 0.001)  # every sample gains the same


def test_a_loss_per_sample_is_that_of_the_sample_alone(cnn_path):
    """What a batch says of each sample, and labels that do not count."""
    state, task = coarse(cnn_path)
    loss = _Loss(state.model, task, labelled=True)
    loss.classes = True
    rng = torch.Generator().manual_seed(1)
    y, t = torch.randn(3, 7, 10, generator=rng), torch.randn(3, 7, 10, generator=rng)
    labels = torch.randint(0, 10, (3, 7), generator=rng)
    labels[0, 2:] = -100
    labels[1] = -100
    whole = loss({"y": y}, {"y": t}, labels, 3)
    alone = [loss({"y": y[[k]]}, {"y": t[[k]]}, labels[[k]], 1) for k in range(3)]
    assert torch.allclose(whole, torch.cat(alone))
    judged = loss({"y": y}, {"y": t}, labels, 3, judging=True)
    by_hand = -torch.log_softmax(y[0, :2], -1)[[0, 1], labels[0, :2]].mean()
    assert torch.isclose(judged[0], by_hand) and judged[1] == 0


def test_a_killed_training_resumes_to_the_same_result(cnn_path, tmp_path):
    state, task = coarse(cnn_path)
    data = load_dataset("task", state.model, task)
    options = Training(epochs=6, learning_rate=3e-3, batch_size=4)
    whole = fit(state, state.teacher, task, data, options)

    class KilledError(Exception):
        pass

    def kill(step, steps, loss):
        if step == 9:
            raise KilledError

    steps = []
    folder = tmp_path / "resume"
    with session.use(session.Session(folder, kill, every_s=0.0)):
        with pytest.raises(KilledError):
            fit(state, state.teacher, task, data, options)
    assert len(list(folder.iterdir())) == 1
    with session.use(session.Session(folder, lambda s, *_: steps.append(s), every_s=0.0)):
        resumed = fit(state, state.teacher, task, data, options)
    assert steps[0] == 9  # the ninth step was done but not yet saved
    assert list(folder.iterdir()) == []
    assert np.array_equal(resumed.after, whole.after)
    assert np.array_equal(resumed.before, whole.before)
    for name, codes in whole.state.plan.codes.items():
        assert np.array_equal(resumed.state.plan.codes[name], codes)


def test_a_damaged_checkpoint_starts_again(cnn_path, tmp_path):
    state, task = coarse(cnn_path)
    data = load_dataset("task", state.model, task)
    folder = tmp_path / "damaged"

    def kill(step, steps, loss):
        if step == 2:
            raise KeyboardInterrupt

    with session.use(session.Session(folder, kill, every_s=0.0)):
        with pytest.raises(KeyboardInterrupt):
            fit(state, state.teacher, task, data, Training(epochs=2, batch_size=8))
    (saved,) = folder.iterdir()
    saved.write_bytes(saved.read_bytes()[:100])
    steps = []
    with session.use(session.Session(folder, lambda s, *_: steps.append(s))):
        fit(state, state.teacher, task, data, Training(epochs=2, batch_size=8))
    assert steps[0] == 1


def test_pruned_weights_and_levels_stay_what_they_are(cnn_path):
    for variant in ("sparse[structured-pattern=2:4]", "cluster[clusters=8]"):
        state, _ = opened(cnn_path, variant)
        parameters = Parameters(state, Trained())
        with torch.no_grad():
            for key, leaf in parameters.leaves.items():
                leaf += 0.3 * torch.randn(leaf.shape, generator=torch.Generator().manual_seed(1))
                assert key
        moved = parameters.result()
        before, after = state.plan.codes["w2"], moved.plan.codes["w2"]
        assert not np.array_equal(before, after)
        if "sparse" in variant:
            assert not after[before == 0].any()
        else:
            assert np.unique(after).size <= 8
            for level in np.unique(before):  # assignments kept
                assert np.unique(after[before == level]).size == 1


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"epochs": 0}, "epochs 0"),
        ({"learning_rate": 0.0}, "learning-rate 0"),
        ({"learning_rate": float("nan")}, "learning-rate"),
        ({"batch_size": 0}, "batch-size"),
        ({"loss": "label"}, "labels"),
    ],
)
def test_bad_options(options, part):
    with pytest.raises(UserError, match=part):
        Training(**options)


def test_a_loss_that_leaves_the_numbers_is_an_error(cnn_path):
    state, task = coarse(cnn_path)
    data = load_dataset("task", state.model, task)
    data.inputs["x"][:] = 3e38
    with pytest.raises(UserError, match="loss became"):
        fit(state, state.teacher, task, data, Training(epochs=1))
