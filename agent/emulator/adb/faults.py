"""Faults a device can have, when they strike, and the wire they strike.

`--fault KIND[:key=value,...]`. A fault strikes `at` seconds after the device came up, `after`
bytes moved over the wire since then, or at once. Kinds:

    drop          the connection is cut, as by a pulled cable; the host may connect again
    freeze        the whole device stands still for `for` seconds (0 = until the emulator ends)
    reboot        every process dies; the device is back after `for` seconds
    refuse-push   a pushed file fails at byte `byte` of it
    full-disk     /data has `free` bytes left
    slow-usb      the wire moves `rate` bytes per second
    kill-agent    the agent's process is killed
    unauthorized  the device never accepts the host's key
    offline       the device never answers the handshake
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

KINDS: dict[str, dict[str, float]] = {  # kind -> its own options with their defaults
    "drop": {},
    "freeze": {"for": 0.0},
    "reboot": {"for": 1.0},
    "refuse-push": {"byte": 0.0},
    "full-disk": {"free": 0.0},
    "slow-usb": {"rate": 1e6},
    "kill-agent": {},
    "unauthorized": {},
    "offline": {},
}
TRIGGERS = ("at", "after")


class FaultSyntaxError(ValueError):
    """The text of a fault makes no sense; the message says why."""


@dataclass(frozen=True)
class Fault:
    """One fault. `at`: seconds since the device came up; `after`: bytes moved since then."""

    kind: str
    options: dict[str, float]
    at: float | None = None
    after: int | None = None

    @classmethod
    def parse(cls, text: str) -> Fault:
        """FaultSyntaxError for an unknown kind or option, or a value that is no number >= 0."""
        kind, _, rest = text.partition(":")
        if kind not in KINDS:
            raise FaultSyntaxError(f"unknown fault {kind!r}; known: {', '.join(KINDS)}")
        values: dict[str, float] = {}
        for item in filter(None, rest.split(",")):
            key, _, value = item.partition("=")
            if key not in KINDS[kind] and key not in TRIGGERS:
                known = ", ".join((*KINDS[kind], *TRIGGERS))
                raise FaultSyntaxError(f"fault {kind} has no option {key!r}; known: {known}")
            try:
                values[key] = float(value)
            except ValueError:
                raise FaultSyntaxError(f"{key}={value} of fault {kind} is no number") from None
            if not 0 <= values[key] < float("inf"):
                raise FaultSyntaxError(f"{key}={value} of fault {kind} must be 0 or more")
        at, after = values.pop("at", None), values.pop("after", None)
        if at is not None and after is not None:
            raise FaultSyntaxError(f"fault {kind} has both at= and after=; give one")
        return cls(kind, KINDS[kind] | values, at, None if after is None else int(after))


class Wire:
    """The bytes between host and device: counted, slowed down, or held back."""

    def __init__(self) -> None:
        self.moved = 0
        self.rate: float | None = None  # bytes per second
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._free_at = 0.0  # loop time from which the slow wire takes the next byte
        self._watches: list[tuple[int, Callable[[], None]]] = []

    def after(self, moved: int, strike: Callable[[], None]) -> None:
        """Call `strike` once, when `moved` bytes have passed."""
        self._watches.append((moved, strike))

    def hold(self) -> None:
        self._flowing.clear()

    def release(self) -> None:
        self._flowing.set()

    async def passed(self, size: int) -> None:
        """Account for `size` bytes, and wait as long as the wire's state asks for."""
        self.moved += size
        due = [watch for watch in self._watches if watch[0] <= self.moved]
        for watch in due:
            self._watches.remove(watch)
            watch[1]()
        if self.rate:
            loop = asyncio.get_running_loop()
            self._free_at = max(self._free_at, loop.time()) + size / self.rate
            await asyncio.sleep(self._free_at - loop.time())
        if not self._flowing.is_set():
            await self._flowing.wait()
