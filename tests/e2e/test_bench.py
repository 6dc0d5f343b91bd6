"""`qhost bench --mock` as its user runs it: one bench, looked at from every side."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import duckdb
import numpy as np
import pytest

from quant.artifact import open_artifact
from quant.build import BuildRequest, build
from quant.figures import METRICS, Provenance

VARIANTS = ["fp16", "int8", "int4"]
# What each figure of an emulated bench must be called, whatever the code paths.
EXPECTED = {
    "accuracy": "htp_emulator",
    "accuracy_drop": "htp_emulator",
    "sqnr_db": "htp_emulator",
    "latency_ms": "emulated_device",
    "latency_p99_ms": "emulated_device",
    "throughput_items_per_sec": "emulated_device",
    "power_mw": "emulated_device",
    "energy_mj": "emulated_device",
    "memory_mb": "emulated_device",
    "startup_ms": "emulated_device",
    "max_temperature_c": "emulated_device",
    "ddr_read_bytes": "compiler",
    "model_size_bytes": "file",
}


@pytest.fixture(scope="module")
def lab(finished_lab):
    return finished_lab[0]


@pytest.fixture(scope="module")
def document(finished_lab):
    return finished_lab[1]


def query(lab, sql: str):
    with duckdb.connect(str(lab.folder / "qhost-mock.duckdb"), read_only=True) as db:
        return db.execute(sql).fetchall()


def artifact_path(lab, variant: str):
    (path,) = (lab.folder / "qhost-out").glob(f"*/tiny-{variant}.qnn")
    return path


def test_json_has_every_variant_and_every_figure_its_provenance(document):
    assert [run["variant"] for run in document["runs"]] == VARIANTS
    for run in document["runs"]:
        assert run["status"] == "ok"
        for name, provenance in EXPECTED.items():
            assert run["figures"][name]["provenance"] == provenance, name
        for name, figure in run["figures"].items():
            assert figure["provenance"] in {p.value for p in Provenance}
            assert figure["provenance"] != "measured"
            assert figure["unit"], name


def test_figures_are_plausible_and_agree_with_each_other(document):
    runs = {r["variant"]: r["figures"] for r in document["runs"]}

    def value(variant: str, name: str) -> float:
        return runs[variant][name]["value"]

    for v in VARIANTS:
        assert value(v, "throughput_items_per_sec") == pytest.approx(
            1000 / value(v, "latency_ms"), rel=0.1
        )
        assert value(v, "energy_gross_mj") == pytest.approx(
            value(v, "power_mw") * value(v, "latency_ms") / 1000, rel=0.15
        )
        assert 0 < value(v, "energy_mj") < value(v, "energy_gross_mj")
        assert value(v, "latency_min_ms") <= value(v, "latency_ms") <= value(v, "latency_p99_ms")
        low, high = runs[v]["latency_ms"]["ci"]
        assert low <= value(v, "latency_ms") <= high
        assert runs[v]["latency_ms"]["n"] == 6
    assert value("fp16", "accuracy") >= 0.9
    assert value("int8", "sqnr_db") > 20
    assert value("int4", "model_size_bytes") < value("fp16", "model_size_bytes")


def test_the_views_of_the_contract(lab):
    rows = query(
        lab,
        "SELECT variant, hardware_type, device, latency = latency_ms, accuracy_provenance, "
        "latency_provenance, power_provenance, power_consumption / 1000 = power_watts "
        "FROM quantization_results ORDER BY run_id",
    )
    assert rows == [
        (v, "qualcomm", "emulated:sm8650", True, "htp_emulator", "emulated_device",
         "emulated_device", True)
        for v in VARIANTS
    ]  # fmt: skip
    assert query(lab, "SELECT count(*) FROM all_results WHERE status = 'ok'") == [(3,)]
    assert (
        query(lab, "SELECT min(n) FROM (SELECT count(*) n FROM samples GROUP BY run_id)")[0][0]
        > 1000
    )


def test_the_page_is_whole_and_says_emulated(lab, document):
    (page,) = (lab.folder / "qhost-out").glob("*/report.html")
    text = page.read_text(encoding="utf-8")
    assert "emulated" in text.lower()
    assert all(v in text for v in VARIANTS)
    assert "<script src=" not in text
    assert 'src="http' not in text
    assert json.loads(page.with_suffix(".json").read_text()) == document


def test_goldens_come_out_bit_for_bit_from_the_artifact_alone(lab, tmp_path):
    """In a new process, which gets nothing but the .qnn."""
    code = """
import sys, json, pathlib, tempfile
import numpy as np
from quant.artifact import open_artifact
from quant.htp.emulator import HtpEmulator
a = open_artifact(pathlib.Path(sys.argv[1]))
folder = a.extract(pathlib.Path(sys.argv[2]), "sm8650")
goldens = a.goldens("sm8650")
with HtpEmulator(folder / "contexts" / "sm8650" / "context.onnx") as emulator:
    outputs = emulator.run([inputs for inputs, _ in goldens])
equal = [
    all(np.array_equal(out[k], want[k]) and out[k].dtype == want[k].dtype for k in want)
    for out, (_, want) in zip(outputs, goldens, strict=True)
]
print(json.dumps(equal))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(artifact_path(lab, "int8")), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert json.loads(done.stdout) == [True, True, True, True]


def test_the_context_is_of_the_soc(lab):
    artifact = open_artifact(artifact_path(lab, "int8"))
    entry = artifact.soc("sm8650")
    assert (entry["soc_model"], entry["arch"]) == (57, 75)
    assert (entry["context"]["soc_model"], entry["context"]["arch"]) == (57, 75)
    done = lab.run("inspect", str(artifact_path(lab, "int8")))
    assert done.returncode == 0
    assert "57" in done.stdout
    assert "v75" in done.stdout


def test_two_builds_are_byte_identical(lab, tmp_path):
    hashes = set()
    for name in ("a", "b"):
        request = BuildRequest(
            lab.model, "int8", "sm8650", tmp_path / name, lab.task, emulator_samples=16
        )
        result = build(request, lambda stage, seconds: None)
        assert not result.cached
        hashes.add(hashlib.sha256(result.artifact.read_bytes()).hexdigest())
    hashes.add(hashlib.sha256(artifact_path(lab, "int8").read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_a_second_bench_builds_nothing(lab):
    done = lab.run(
        *lab.bench_args("--methods", "fp16,int8"),
        "--db-path", "second.duckdb", "--output-dir", "second",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with duckdb.connect(str(lab.folder / "second.duckdb"), read_only=True) as db:
        stages = db.execute("SELECT DISTINCT stage, cached FROM stages").fetchall()
    assert stages == [("cache lookup", True)]


def test_scores_pair_with_the_same_samples(lab):
    scores = open_artifact(artifact_path(lab, "int4")).arrays("quality/scores.npz")
    assert len(scores["htp_emulator"]) == 16
    assert len(scores["float"]) == len(scores["ort_cpu"]) == 48
    assert np.mean(scores["float"]) == 1.0


def test_every_metric_in_the_database_is_in_the_table(lab):
    names = {name for (name,) in query(lab, "SELECT DISTINCT metric FROM figures")}
    assert names <= set(METRICS)
    assert set(EXPECTED) <= names


def test_finished_artifacts_are_run_as_they_are(lab):
    copy = lab.folder / "copy.qnn"
    copy.write_bytes(artifact_path(lab, "int8").read_bytes())
    done = lab.run(
        "bench", "--mock", "--device", "sm8650", "--db-path", "artifacts.duckdb", "--json",
        "--output-dir", "third",
        "--model-path", str(artifact_path(lab, "int8")), "--model-path", str(copy),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)["runs"]
    assert [r["variant"] for r in runs] == ["int8@tiny-int8", "int8@copy"]
    assert {r["method"] for r in runs} == {"int8"}
    assert runs[0]["figures"]["accuracy"] == runs[1]["figures"]["accuracy"]
    other = lab.run(
        "bench", "--mock", "--device", "sm8750", "--model-path", str(copy), "--db-path", "x.duckdb"
    )
    assert other.returncode == 1
    assert "has no context for sm8750, only for sm8650" in other.stderr


def test_the_power_of_a_run_is_the_external_meters(lab):
    """On a machine too busy for an emulated device to keep up with the wall, its clock is no line:
    then the run says that it did without the meter."""
    node = lab.folder / "node"
    node.write_text("1234000\n")
    meter = subprocess.Popen(
        [sys.executable, "-P", "-m", "host.meters.stand_in", "--node", str(node)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        port = meter.stdout.readline().split()[1]
        done = lab.run(
            *lab.bench_args("--methods", "int8", "--time-factor", "2", "--per-op"),
            "--meter", f"stream:port={port}", "--db-path", "meter.duckdb",
        )  # fmt: skip
    finally:
        meter.kill()
        meter.communicate()
    assert done.returncode == 0, done.stderr
    with duckdb.connect(str(lab.folder / "meter.duckdb"), read_only=True) as db:
        ((notes, method, power, energy),) = db.execute(
            "SELECT notes_json, all_results.power_method, power_mw, energy_mj "
            "FROM all_results JOIN runs USING (run_id)"
        ).fetchall()
        ((epochs, seen, sites),) = db.execute(
            "SELECT (SELECT count(*) FROM clock_estimates), (SELECT count(*) FROM clock_offsets), "
            "(SELECT count(*) FROM channels WHERE site = 'meter')"
        ).fetchall()
    assert (epochs, sites) == (1, 2)
    assert "No times per operator: an emulated device" in notes
    assert seen > 6, "a look at the clock after every block"
    shown = lab.run("trace", "show", "latest", "--db-path", "meter.duckdb").stdout
    assert "Sampler: " in shown and " 0 late" in shown
    if method.startswith("board rail"):  # a machine too busy to know the device's clock
        assert "known only to" in notes
        return
    assert method == "external meter: supply_power (external meter qhost stand-in)"
    assert power == pytest.approx(1234.0, rel=1e-3)
    assert "Device clock: known to the host within " in shown
    assert abs(energy) < 1e-3  # the meter saw no difference to idle
