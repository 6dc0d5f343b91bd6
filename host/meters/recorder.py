"""Records a meter beside a bench and gives each run the part that belongs to it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from host.clock import ClockLine
from host.errors import UserError
from host.meters import SITE, Meter, Readings, open_meter
from host.store.rows import Channel, Samples

# Their ids lie above any that an agent gives.
FIRST_CHANNEL = 1001
# Windows are cut a little wider than the marks: power at their ends is interpolated.
MARGIN_NS = 200_000_000
_KEEP_NS = 1_000_000_000
_WAIT_S = 1.0
# Beyond this the marks and the readings do not belong together well enough: at 50 % duty a block
# of a second would be 2 % off.
MAX_UNCERTAINTY_NS = 20_000_000


def open_recorder(text: str, device: str, *, emulated: bool) -> MeterRecorder:
    """The meter of `NAME[:key=value,...]`, recording. UserError also for a stand-in at a real
    device: nothing it shows may become a measured figure."""
    meter = open_meter(text)
    if meter.stand_in and not emulated:
        meter.close()
        raise UserError(
            f"The meter {meter.name} is a stand-in in software, and {device} is a real device.",
            "Its readings must not stand beside measured figures: connect a real meter.",
        )
    return MeterRecorder(meter)


class MeterRecorder:
    """Reads a meter in a thread from the first moment on; keeps what may still be asked for."""

    def __init__(self, meter: Meter) -> None:
        self.name = meter.name
        self.channels = tuple(
            Channel(
                FIRST_CHANNEL + i, c.name, SITE, c.kind, c.unit, f"external meter {meter.name}",
                meter.rate_hz, meter.name,
            )
            for i, c in enumerate(meter.channels)
        )  # fmt: skip
        self._meter = meter
        self._kept: deque[Readings] = deque()
        self._changed = threading.Condition()
        self._until_ns = 0
        self._given_ns: dict[str, int] = {}
        self._failure = ""
        self._wanted_from_ns: int | None = None  # None: nothing is under way
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._record, name="meter", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(2.0)
        self._meter.close()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """While segments run everything is kept until it was taken; between them nothing is."""
        self._wanted_from_ns = time.monotonic_ns() - _KEEP_NS
        try:
            yield
        finally:
            self._wanted_from_ns = None

    def take(
        self, run_id: str, clock: ClockLine, start_ns: int, end_ns: int
    ) -> tuple[list[Samples], str]:
        """The samples of a run between two device times, on the device's clock, each once; and
        why there are none, empty where there are."""
        if clock.uncertainty_ns > MAX_UNCERTAINTY_NS:
            return [], (
                f"The clocks of the device and of the meter {self.name} are known only to "
                f"{clock.uncertainty_ns / 1e6:.0f} ms: its readings are left out. "
                "An emulated device must run with the wall: --time-factor 1."
            )
        start = clock.to_host(start_ns) - MARGIN_NS
        end = clock.to_host(end_ns) + MARGIN_NS
        with self._changed:
            deadline = time.monotonic() + _WAIT_S
            while self._until_ns < end and not self._failure:
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    break
            kept = list(self._kept)
            if self._failure:
                return [], f"The meter {self.name} was lost: {self._failure}."
        if not kept:
            return [], f"The meter {self.name} gave no reading."
        host_ns = np.concatenate([r.host_ns for r in kept])
        since = max(start, self._given_ns.get(run_id, 0) + 1)
        inside = slice(*np.searchsorted(host_ns, [since, end]))
        if inside.start == inside.stop:
            return [], f"The meter {self.name} gave no reading in time."
        self._given_ns[run_id] = int(host_ns[inside][-1])
        self._wanted_from_ns = end - _KEEP_NS
        device_ns = clock.to_device(host_ns[inside])
        return [
            Samples(c.channel, device_ns, np.concatenate([r.values[c.name] for r in kept])[inside])
            for c in self.channels
        ], ""

    def _record(self) -> None:
        try:
            while not self._stop.is_set():
                readings = self._meter.read()
                if not len(readings.host_ns):
                    continue
                with self._changed:
                    self._kept.append(readings)
                    self._until_ns = until = int(readings.host_ns[-1])
                    wanted = self._wanted_from_ns
                    oldest = until - _KEEP_NS if wanted is None else wanted
                    while self._kept and self._kept[0].host_ns[-1] < oldest:
                        self._kept.popleft()
                    self._changed.notify_all()
        except OSError as error:
            with self._changed:
                self._failure = str(error)
                self._changed.notify_all()
