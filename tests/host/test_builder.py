"""The build worker as the bench ends it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from host.bench.builder import Builder, BuildFailure, Built
from host.errors import FailureClass
from quant.build import BuildRequest

SAMPLE = Path(__file__).parents[2] / "host" / "samples" / "data" / "fashion_cnn"


def test_a_build_that_is_ended_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    builder = Builder(tmp_path / "log")
    compiling = threading.Event()
    results: list[Built | BuildFailure] = []

    def on_stage(variant: str, stage: str, seconds: float) -> None:
        if stage == "compile":
            compiling.set()

    def build() -> None:
        request = BuildRequest(
            SAMPLE / "model.onnx", "fp16", "sm8650", tmp_path / "cache", SAMPLE / "task.npz"
        )
        results.append(builder.build(request, on_stage))

    thread = threading.Thread(target=build)
    thread.start()
    assert compiling.wait(60)
    assert list((tmp_path / "tmp").glob("qhost-build-*"))
    builder.close()
    thread.join(60)
    assert isinstance(results[0], BuildFailure)
    assert results[0].failure_class is FailureClass.KILLED
    assert list((tmp_path / "tmp").glob("qhost-*")) == []
