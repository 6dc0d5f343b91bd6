"""Runs on an emulated device with a personality, through the whole chain: files, sensors, gRPC,
database. For the tools that ask what figures and flags come out of it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from host.bench.device import DeviceRunner
from host.client import SegmentSpec
from host.config import cache_dir
from host.devices import LocalEmulator
from host.samples import default_sample
from host.store import RunData, RunRow, SessionRow, Store
from quant.artifact import Artifact, open_artifact
from quant.build import BuildRequest, build

SOC = "sm8650"
RUN = "r"


class CaseDevice(LocalEmulator):
    """An emulated device with options of the agent, and `device_model` of the artifact replaced."""

    def __init__(self, options: Sequence[str], model: Mapping[str, Any]) -> None:
        self._options = options
        self._model = model
        super().__init__(SOC)

    def _command(self, root: Path, token_file: Path) -> list[str]:
        return [*super()._command(root, token_file), *self._options]

    def put(self, artifact: Artifact) -> None:
        with tempfile.TemporaryDirectory() as tmp:
            folder = artifact.extract(Path(tmp), SOC)
            path = folder / "manifest.json"
            manifest = json.loads(path.read_text())
            manifest["device_model"][SOC].update(self._model)
            path.write_text(json.dumps(manifest))
            self.client.put_artifact(folder, artifact.sha256)


def sample_artifact() -> Artifact:
    """The shipped sample as int8, from the cache where it is there."""
    sample = default_sample()
    request = BuildRequest(
        model_path=sample.model_path, variant="int8", soc=SOC, cache_dir=cache_dir(None),
        task_path=sample.task_path, model_type=sample.model_type, metric=sample.metric,
        emulator_samples=16,
    )  # fmt: skip
    return open_artifact(build(request, lambda stage, seconds: None).artifact)


def run_segments(
    artifact: Artifact,
    segments: Sequence[SegmentSpec],
    *,
    personality: str = "board",
    seed: int = 0,
    signal: str = "",
    model: Mapping[str, Any] | None = None,
) -> tuple[RunData, str]:
    """What the database holds of the run `r` afterwards, and why it failed (empty: it did not)."""
    options = ["--personality", personality, "--seed", str(seed)]
    if signal:
        options += ["--signal", signal]
    with tempfile.TemporaryDirectory() as folder, closing(CaseDevice(options, model or {})) as dev:
        with Store.open(Path(folder) / "q.duckdb", create=True) as store:
            store.new_session(SessionRow("s", "f", True, "case", seed))
            row = RunRow(
                RUN, "s", "m", "vision", "f", "t", SOC, "emulated", "EMU", "int8", "int8", "case"
            )
            store.add_run(row, dev.info.channels)
            runner = DeviceRunner(dev, store, "s", lambda done: None)
            runner.put(artifact)
            runner.run(segments)
            failure = runner.failures.get(RUN)
            return store.run_data(RUN), failure.message if failure else ""
