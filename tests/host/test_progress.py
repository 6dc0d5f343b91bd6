"""What a bench says on stderr where that is a file."""

from __future__ import annotations

from host.bench.device import SegmentDone
from host.bench.plan import PROFILES, Conditions, Job, JobVariant, block_segment, check_segment
from host.cli.progress import Progress
from host.devices import DeviceInfo
from host.errors import RunStatus
from quant.figures import Provenance

INFO = DeviceInfo(
    "e", "phone", "sm8650", 57, 75, "build", "os", "1",
    Provenance.EMULATED_DEVICE, Provenance.HTP_EMULATOR, "a device model", (), {},
)  # fmt: skip
UNDER = Conditions("sm8650", PROFILES["rapid"])
NAMES = ("fp16", "sparse[sparsity=0.5]", "qat")


def done(run_id: str, block: int | None = None, failure: str = "") -> SegmentDone:
    spec = (
        check_segment(run_id, "sha", UNDER)
        if block is None
        else block_segment(run_id, "sha", block, UNDER)
    )
    return SegmentDone(spec, failure)


def test_a_line_per_variant_and_round_and_the_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    jobs = [Job(f"r{i}", "net", JobVariant(name, (name,), "[]")) for i, name in enumerate(NAMES)]
    with Progress() as progress:
        progress.planned("s1", INFO, jobs, PROFILES["rapid"])
        progress.finished("r2", RunStatus.SKIPPED, "torch is not installed: 'qhost[train]'")
        progress.stage("r0", "cached", 0.02)
        progress.stage("r1", "quantize", 0.0)
        progress.stage("r1", "quantize", 1.5)
        progress.stage("r1", "package", 0.1)
        for run_id in ("r0", "r1"):
            progress.segment(done(run_id))
        for run_id, block in (("r1", 0), ("r0", 0), ("r0", 1)):
            progress.segment(done(run_id, block))
        progress.segment(done("r1", 1, "no answer within 60 s"))
        progress.finished("r1", RunStatus.FAILED, "no answer within 60 s")
        progress.finished("r0", RunStatus.OK, "")
    lines = [line.rstrip() for line in capsys.readouterr().err.splitlines()]
    assert lines[:9] == [
        "Session s1 on emulated:sm8650 (EMULATED, its time, power, heat and memory are a model's)",
        "3 variants: fp16, sparse[sparsity=0.5], qat",
        "Profile rapid: 6 timed blocks of each, in a random order",
        "qat: skipped: torch is not installed: 'qhost[train]'",
        "fp16: artifact taken from the cache",
        "sparse[sparsity=0.5]: built in 1.6 s: quantize 1.5 s, package 0.1 s",
        "block 1 of 6 measured: 2 variants",
        "sparse[sparsity=0.5]: failed: no answer within 60 s",
        "block 2 of 6 measured: 1 variant",
    ]
    assert lines[9].split() == ["accuracy", "accuracy"]
    table = [line.split() for line in lines[11:]]
    assert table[0] == ["fp16", "cached", "ok"]
    assert table[1] == ["sparse[sparsity=0.5]", "1.5", "s", "0.1", "s", "failed"]
    assert table[2] == ["qat", "skipped"]
    assert table[3][:5] == ["total", "0.0", "s", "1.5", "s"]
    assert lines[-1] == "1 artifact taken from the cache in 0.02 s."
