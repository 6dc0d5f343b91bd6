"""The memory of the process that runs the model, read while it infers."""

from __future__ import annotations

import statistics
import threading
from typing import Self

from agent.platform import Platform
from agent.sensors.system import ProcessMemory
from protos import agent_pb2 as pb

# A reading walks every mapping of a process of hundreds of MB: some milliseconds of a core.
_PERIOD_S = 0.1


class MemoryWatch:
    """Reads at once, every 0.1 s of the wall, and once more at the end."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._readings: list[ProcessMemory] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def result(self, load_peak_bytes: int) -> pb.MemoryResult:
        """`load_peak_bytes`: what the runtime saw while it loaded. Without any reading it is all
        that is known."""
        readings = self._readings
        if not readings:
            return pb.MemoryResult(peak_bytes=load_peak_bytes)
        buffers = max(r.dma_buffers for r in readings)
        peak = max(r.peak_pages for r in readings) + buffers
        return pb.MemoryResult(
            peak_bytes=max(peak, load_peak_bytes),
            steady_bytes=round(statistics.median(r.pages + r.dma_buffers for r in readings)),
            dma_buffer_bytes=buffers,
            readings=len(readings),
        )

    def _watch(self) -> None:
        while True:
            last = self._end.is_set()
            reading = self._platform.model_memory()
            if reading is not None:
                self._readings.append(reading)
            if last:
                return
            self._end.wait(_PERIOD_S)
