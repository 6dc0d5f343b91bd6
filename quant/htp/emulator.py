"""Run a compiled context in the HTP emulator: the device's arithmetic, on the host's time."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import onnx

from quant.errors import ToolchainError, UserError
from quant.htp._worker import read_frame, write_frame
from quant.htp.compile import died, worker_command, worker_environment
from quant.htp.inspect import read_context
from quant.htp.soc import Soc, soc_of_model

Arrays = dict[str, np.ndarray[Any, Any]]

MAX_WORKERS = 2


class _Worker:
    """One emulator process with the context loaded."""

    def __init__(self, context_onnx: Path, soc_model: int) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile(prefix="qhost-emulator-")  # noqa: SIM115
        self._process = subprocess.Popen(
            worker_command("run", str(context_onnx), str(soc_model)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=worker_environment(),
        )

    def run(self, feed: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # A worker that died early breaks the pipe; how it ended is told from its exit code.
        with contextlib.suppress(BrokenPipeError):
            write_frame(self._process.stdin, dict(feed))  # type: ignore[arg-type]
        answer = read_frame(self._process.stdout)  # type: ignore[arg-type]
        if answer is None:
            code = self._process.wait()
            raise ToolchainError(f"The HTP emulator {died(code)}.{self._last_words()}")
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [s for s in self._log.read().decode(errors="replace").splitlines() if s.strip()]
        return f" It said last: {lines[-1].strip()[:300]}" if lines else ""

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._process.kill()
        self._process.wait()
        self._log.close()


class HtpEmulator:
    """Executes a context binary on the host, strictly: nothing runs on the CPU provider.

    `context_onnx` is the EPContext wrapper with its .bin beside it. Outputs are bit-deterministic
    and belong to the context's SoC. Several processes share the feeds, so that every core works.

    Raises UserError where the binary is not for `soc` (when given) or names an unknown SoC.
    """

    def __init__(
        self, context_onnx: Path, *, soc: Soc | None = None, workers: int | None = None
    ) -> None:
        info = read_context(context_binary(context_onnx))
        found = soc_of_model(info.soc_model)
        if found is None:
            raise UserError(
                f"{context_onnx} is for soc_model {info.soc_model}, which qhost does not know.",
                "Compile the model again for a known SoC.",
            )
        if soc is not None and soc.id != found.id:
            raise UserError(
                f"{context_onnx} is a context for {found.id}, not for {soc.id}.",
                f"Compile the model for {soc.id}.",
            )
        self.soc = found
        self.info = info
        self._context = context_onnx.resolve()
        self._limit = max(1, workers or min(MAX_WORKERS, os.cpu_count() or 1))
        self._workers: list[_Worker] = []

    def __enter__(self) -> HtpEmulator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes. The emulator may be used again; new ones are then started."""
        for worker in self._workers:
            worker.close()
        self._workers.clear()

    def run(self, feeds: Sequence[Mapping[str, np.ndarray[Any, Any]]]) -> list[Arrays]:
        """Outputs by name, one dict per feed, in the order of the feeds.

        Raises ToolchainError where the emulator fails or dies.
        """
        wanted = min(self._limit, len(feeds))
        while len(self._workers) < wanted:
            self._workers.append(_Worker(self._context, self.info.soc_model))
        results: list[Arrays | None] = [None] * len(feeds)
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for i in range(len(feeds)):
            todo.put(i)
        errors: list[Exception] = []

        def drain(worker: _Worker) -> None:
            while not errors:
                try:
                    i = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    results[i] = worker.run(feeds[i])
                except Exception as error:  # noqa: BLE001 - raised where run was called
                    errors.append(error)

        threads = [threading.Thread(target=drain, args=(w,)) for w in self._workers[:wanted]]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            self.close()
            raise
        if errors:
            self.close()
            raise errors[0]
        return [r for r in results if r is not None]  # every one is there


def context_binary(context_onnx: Path) -> Path:
    """The binary that an EPContext wrapper points at; it must lie beside the wrapper."""
    try:
        model = onnx.load(str(context_onnx), load_external_data=False)
    except Exception as error:
        raise UserError(f"{context_onnx} is not an ONNX file: {error}.") from error
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "ep_cache_context":
                name = attribute.s.decode(errors="replace")
                if Path(name).name != name:
                    raise UserError(f"{context_onnx} points outside its directory: {name!r}.")
                return context_onnx.parent / name
    raise UserError(
        f"{context_onnx} holds no compiled context.", "Give the .onnx that compilation wrote."
    )
