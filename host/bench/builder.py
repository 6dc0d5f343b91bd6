"""The build worker as a child process: it may crash or be killed without taking the bench along."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from host.errors import FailureClass
from quant.build import ENDING_S, BuildRequest

StageCallback = Callable[[str, str, float], None]


@dataclass(frozen=True)
class Built:
    """A finished build: the artifact and seconds per stage (empty when it came from the cache)."""

    artifact: Path
    cached: bool
    stages: dict[str, float]


@dataclass(frozen=True)
class BuildFailure:
    failure_class: FailureClass
    message: str
    hint: str = ""


class Builder:
    """Runs build requests one after the other in a worker that is started when first needed."""

    def __init__(self, log_path: Path) -> None:
        self._log_path = log_path
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._closed = False

    def _worker(self) -> subprocess.Popen[str]:
        with self._lock:
            if self._closed:
                raise RuntimeError("the builder is closed")
            if self._process is None or self._process.poll() is not None:
                with self._log_path.open("ab") as log:
                    self._process = subprocess.Popen(
                        [sys.executable, "-P", "-m", "quant.build"],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        text=True,
                        start_new_session=True,
                    )
            return self._process

    def build(self, request: BuildRequest, on_stage: StageCallback) -> Built | BuildFailure:
        """Build one variant. on_stage(variant, stage, seconds) as stages begin (0.0) and end."""
        process = self._worker()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request.to_json()) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return self._died(process)
        for line in process.stdout:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "stage":
                on_stage(request.variant, event["stage"], event["seconds"])
            elif event["event"] == "done":
                return Built(Path(event["artifact"]), event["cached"], event["stages"])
            else:
                return BuildFailure(
                    FailureClass(event["failure_class"]), event["message"], event["hint"]
                )
        return self._died(process)

    def _died(self, process: subprocess.Popen[str]) -> BuildFailure:
        code = process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        kind = FailureClass.KILLED if code < 0 else FailureClass.HARNESS_ERROR
        return BuildFailure(kind, f"The build worker {how}.", f"Its log: {self._log_path}")

    def close(self) -> None:
        """End the worker, whatever it is doing."""
        with self._lock:
            self._closed = True
            process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=ENDING_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its compilers, too
                process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
