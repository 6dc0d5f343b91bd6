"""What the outputs that a device computed become: figures of its own provenance."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from host.bench.accuracy import beside_the_emulator, evaluation_figures
from host.errors import UserError
from quant.artifact import Artifact
from quant.evaluate import Evaluation
from quant.figures import Provenance
from quant.inputset import write_input_set
from quant.model import Interface, TensorSpec
from quant.task import Task

SCORES = {
    "float": np.array([1, 1, 1, 0, 1, 1], float),
    "htp_emulator": np.array([1, 0, 1, 0], float),
}


def artifact(scores: dict[str, Any] = SCORES) -> Artifact:
    stub = SimpleNamespace(members={"quality/scores.npz": None}, arrays=lambda name: scores)
    return cast(Artifact, stub)


def evaluation(scores: list[float], engine: Provenance = Provenance.MEASURED) -> Evaluation:
    values = np.array(scores, float)
    value = float(values.mean()) if scores else None
    return Evaluation(engine, len(values), "top1", True, value, values, 31.0, 0.9)


def test_silicon_gives_measured_accuracy_and_paired_drops():
    figures = evaluation_figures(
        evaluation([1, 1, 0, 0, 1, 1]), artifact(), evaluation([1, 1, 1, 1, 1, 1]), seed=0
    )
    by_name = {f.metric: f for f in figures}
    assert {f.provenance for f in figures} == {Provenance.MEASURED}
    assert (by_name["accuracy"].value, by_name["accuracy"].n) == (pytest.approx(4 / 6), 6)
    assert by_name["accuracy_drop"].value == pytest.approx(1 / 6)
    assert by_name["accuracy_drop_fp16"].value == pytest.approx(2 / 6)
    assert by_name["sqnr_db"].value == 31.0
    assert by_name["agreement"].value == 0.9


def test_without_an_fp16_variant_on_the_device_there_is_no_drop_from_it():
    figures = evaluation_figures(evaluation([1, 1, 0, 0, 1, 1]), artifact(), None, seed=0)
    assert "accuracy_drop_fp16" not in {f.metric for f in figures}


def test_the_note_counts_samples_that_the_emulator_scores_the_same():
    note = beside_the_emulator(evaluation([1, 1, 1, 0, 1, 1]), artifact())
    assert "6 samples, top1 0.8333" in note
    assert "the HTP emulator scores 3 of 4 the same" in note
    assert "agreement with float 0.9000" in beside_the_emulator(evaluation([]), artifact({}))


def test_an_input_set_is_named_by_its_content(tmp_path):
    inputs = {"x": np.arange(12, dtype=np.float32).reshape(4, 3)}
    model = Interface((TensorSpec("x", "float32", (1, 3)),))
    task = Task("t", "vision", inputs, None, {}, None, False, (), "f")
    names = {write_input_set(tmp_path / str(n), model, task, n) for n in (2, 3)}
    assert len(names) == 2
    assert write_input_set(tmp_path / "again", model, task, 3) in names
    stored = np.load(tmp_path / "3/inputs/0.npy")
    np.testing.assert_array_equal(stored, inputs["x"][:3, None])


def test_a_finished_artifact_has_no_samples_to_run(tmp_path):
    from host.bench.prepare import BenchConfig, ModelInput, prepare
    from host.devices import Target

    config = BenchConfig(
        models=(ModelInput(tmp_path / "m.qnn"),),
        variants=(),
        target=Target(emulated_soc="sm8650"),
        db_path=tmp_path / "db",
        db_named=False,
        output_dir=tmp_path,
        cache_dir=tmp_path,
        device_accuracy=8,
    )
    with pytest.raises(UserError, match="holds no labelled samples"):
        prepare(config)
