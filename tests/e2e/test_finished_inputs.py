"""bench on what people already have: a quantized graph, and a context binary of another tool."""

from __future__ import annotations

import json
import shutil

import pytest

from quant.artifact import open_artifact
from quant.errors import UserError
from quant.htp.adopt import adopt_context


@pytest.fixture(scope="module")
def int8(finished_lab, tmp_path_factory):
    """(its artifact, its QDQ graph, its bare context), named as a user would have them."""
    lab, done = finished_lab
    folder = tmp_path_factory.mktemp("finished")
    for path in (lab.folder / "cache/artifacts").glob("*.qnn"):
        artifact = open_artifact(path)
        if (artifact.manifest["model"]["name"], artifact.variant) == ("tiny", "int8"):
            artifact.extract_members(folder, ["model.onnx", "contexts/sm8650/context.bin"])
            qdq, context = folder / "mine.onnx", folder / "mine.bin"
            shutil.move(folder / "model.onnx", qdq)
            shutil.move(folder / "contexts/sm8650/context.bin", context)
            return artifact, qdq, context
    raise AssertionError(f"no int8 artifact of {done}")


def test_a_quantized_graph_is_measured_as_it_is(finished_lab, int8):
    lab, done = finished_lab
    _, qdq, _ = int8
    again = lab.run(
        "bench", "--mock", "--device", "sm8650", "--model-path", str(qdq), "--task", str(lab.task),
        "--emulator-samples", "16", "--db-path", "qdq.duckdb", "--json",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    (run,) = json.loads(again.stdout)["runs"]
    assert (run["variant"], run["status"]) == ("as-is", "ok")
    assert "already quantized" in again.stdout
    ours = run["figures"]
    theirs = next(r for r in done["runs"] if r["variant"] == "int8")["figures"]
    for metric in ("accuracy", "model_size_bytes", "ddr_read_bytes"):
        assert ours[metric]["value"] == theirs[metric]["value"]
        assert ours[metric]["provenance"] == theirs[metric]["provenance"]
    # The float model is not known: nothing says how much was lost against it.
    assert "accuracy_drop" not in ours
    assert ours["sqnr_db"]["reason"] == "against onnxruntime on the same graph"


def test_a_context_runs_and_its_emulated_time_is_not_valid(finished_lab, int8):
    lab, _ = finished_lab
    _, _, context = int8
    done = lab.run(
        "bench", "--mock", "--device", "sm8650", "--model-path", str(context),
        "--db-path", "context.duckdb", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    (run,) = said["runs"]
    assert said["session"]["model_name"] == "mine"
    assert (run["variant"], run["status"]) == ("as-is", "ok")
    found = run["figures"]
    assert found["model_size_bytes"]["value"] == context.stat().st_size
    assert "accuracy" not in found
    assert "ddr_read_bytes" not in found
    for metric in ("latency_ms", "throughput_items_per_sec", "power_mw", "energy_mj"):
        assert not found[metric]["valid"]
        assert "lower bound" in found[metric]["reason"]
    assert found["startup_ms"]["valid"]
    refused = lab.run(
        "bench", "--mock", "--device", "sm8550", "--model-path", str(context),
        "--db-path", "context.duckdb",
    )  # fmt: skip
    assert refused.returncode == 1
    assert "mine.bin has no context for sm8550, only for sm8650" in refused.stderr


def test_an_adopted_context_computes_what_its_artifact_did(int8, tmp_path):
    artifact, _, context = int8
    adopted = adopt_context(context, tmp_path)
    assert adopted.read("contexts/sm8650/context.bin") == context.read_bytes()
    assert adopted.manifest["device_model"]["sm8650"]["partial"] is True
    assert adopt_context(context, tmp_path).sha256 == adopted.sha256
    # Its wrapper feeds the same tensors as the compiler's own.
    (feed, _), *_ = artifact.goldens("sm8650")
    (mine, outputs), *_ = adopted.goldens("sm8650")
    assert {k: (v.shape, v.dtype) for k, v in mine.items()} == {
        k: (v.shape, v.dtype) for k, v in feed.items()
    }
    assert {k: v.shape for k, v in outputs.items()} == {"logits": (1, 5)}


@pytest.mark.parametrize("content", [b"", b"not a context", b"\x00" * 4096])
def test_what_is_no_context_is_refused(tmp_path, content):
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.bin is not a QNN context binary"):
        adopt_context(path, tmp_path)
    assert list(tmp_path.iterdir()) == [path]
