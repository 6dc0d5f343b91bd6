"""Follows the device's clock through a session: round trips now and then, a line per epoch."""

from __future__ import annotations

import dataclasses
import time
from contextlib import suppress

from host.client import AgentClient
from host.clock import ClockLine, fit_clock
from host.errors import DeviceError
from host.store import Store
from host.store.rows import ClockEstimate, ClockOffset

# Often enough that a line's ends are never far from an observation, too rarely to be noticed by
# what is measured.
INTERVAL_S = 10.0
_ROUNDS, _FIRST_ROUNDS = 6, 12


class SessionClock:
    """Observes, stores what it saw, and knows the line of the present epoch.

    An epoch is the life of one agent: a device that was rebooted starts a new clock. `shift_ns`
    is what the host adds to the times of this epoch so that they follow those of the last.
    """

    def __init__(self, store: Store, session_id: str, serial: str) -> None:
        self._store = store
        self._session_id = session_id
        self._serial = serial
        self._epoch = store.clock_epochs(session_id, serial) - 1
        self._shift_ns = 0
        self._observed: list[ClockOffset] = []
        self._due_s = 0.0

    def new_epoch(self, client: AgentClient, after_ns: int, gap_ns: int) -> int:
        """The agent is another one. Its times are to lie behind `after_ns` (0: anywhere) by at
        least `gap_ns`; returns what to add to them."""
        self._epoch += 1
        self._observed = []
        self._shift_ns = 0
        first = self._measure(client, _FIRST_ROUNDS)
        if after_ns:
            self._shift_ns = max(0, after_ns + gap_ns - first.device_ns)
        self._keep(dataclasses.replace(first, device_ns=first.device_ns + self._shift_ns))
        return self._shift_ns

    def observe(self, client: AgentClient, *, at_once: bool = False) -> None:
        """One more observation when the last is old, or `at_once`."""
        if at_once or time.monotonic() >= self._due_s:
            # A connection that is cut just now is mended by whoever needs it next.
            with suppress(DeviceError):
                self._keep(self._measure(client, _ROUNDS))

    @property
    def line(self) -> ClockLine:
        return fit_clock(self._observed)

    def _measure(self, client: AgentClient, rounds: int) -> ClockOffset:
        host_ns, offset = client.clock(rounds)
        return ClockOffset(
            self._session_id,
            self._serial,
            host_ns,
            host_ns + offset.offset_ns + self._shift_ns,
            2 * offset.uncertainty_ns,
            self._epoch,
        )

    def _keep(self, offset: ClockOffset) -> None:
        self._observed.append(offset)
        self._due_s = time.monotonic() + INTERVAL_S
        line = self.line
        self._store.add_clock(
            offset,
            ClockEstimate(
                self._session_id,
                self._serial,
                self._epoch,
                line.host_ns,
                line.device_ns,
                line.drift_ppm,
                line.uncertainty_ns,
                line.observations,
            ),
        )
