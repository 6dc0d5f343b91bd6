"""Synthetic power signals whose energy is known exactly, to test what measures energy.

A signal is the power of the whole device: `idle_mw` while it rests, and a shape on top of it
while it infers. `energy_mj(x)` is the exact integral of that shape over the first x seconds of an
uninterrupted stretch of inferences, so the net energy per inference of n inferences that took T
seconds is `energy_mj(T) / n`. The emulated device shows the signal on its board rail and battery
in place of its own model (`--signal`), with latency noise and throttling off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


class Signal(Protocol):
    """A shape of power above idle."""

    @property
    def idle_mw(self) -> float: ...

    def energy_mj(self, seconds: float, latency_s: float) -> float:
        """Integral above idle from the first inference on; latency_s: of one inference."""
        ...


@dataclass(frozen=True)
class Constant:
    """`load_mw` above idle."""

    idle_mw: float = 500.0
    load_mw: float = 3000.0

    def energy_mj(self, seconds: float, latency_s: float) -> float:
        return self.load_mw * seconds


@dataclass(frozen=True)
class Steps:
    """low_mw for half a period, then high_mw for the other half."""

    idle_mw: float = 500.0
    low_mw: float = 1000.0
    high_mw: float = 4000.0
    period_s: float = 0.37

    def energy_mj(self, seconds: float, latency_s: float) -> float:
        whole, rest = divmod(seconds, self.period_s)
        half = self.period_s / 2
        energy = whole * half * (self.low_mw + self.high_mw)
        return energy + self.low_mw * min(rest, half) + self.high_mw * max(rest - half, 0.0)


@dataclass(frozen=True)
class Ramp:
    """From start_mw to end_mw over ramp_s, then end_mw."""

    idle_mw: float = 500.0
    start_mw: float = 1000.0
    end_mw: float = 4000.0
    ramp_s: float = 5.0

    def energy_mj(self, seconds: float, latency_s: float) -> float:
        x = min(seconds, self.ramp_s)
        slope = (self.end_mw - self.start_mw) / self.ramp_s
        return self.start_mw * x + slope * x * x / 2 + self.end_mw * max(seconds - self.ramp_s, 0.0)


@dataclass(frozen=True)
class Bursts:
    """peak_mw during the first `duty` of every inference, base_mw during the rest."""

    idle_mw: float = 500.0
    peak_mw: float = 6000.0
    base_mw: float = 800.0
    duty: float = 0.3

    def energy_mj(self, seconds: float, latency_s: float) -> float:
        whole, rest = divmod(seconds, latency_s)
        high = latency_s * self.duty
        each = self.peak_mw * high + self.base_mw * (latency_s - high)
        return whole * each + self.peak_mw * min(rest, high) + self.base_mw * max(rest - high, 0.0)


SIGNALS: Mapping[str, Callable[..., Signal]] = {
    "constant": Constant,
    "steps": Steps,
    "ramp": Ramp,
    "bursts": Bursts,
}


def parse_signal(text: str) -> Signal:
    """`bursts` or `bursts:peak_mw=5000,duty=0.2`. Raises ValueError, naming what is known."""
    name, _, rest = text.partition(":")
    if name not in SIGNALS:
        raise ValueError(f"unknown signal {name!r}; known: {', '.join(SIGNALS)}")
    try:
        pairs = (part.split("=", 1) for part in rest.split(",") if part)
        return SIGNALS[name](**{key: float(value) for key, value in pairs})
    except (TypeError, ValueError) as error:
        raise ValueError(f"signal {name!r}: {error}") from error


class SignalTrace:
    """A signal over a device's time line: idle, and stretches of inferences."""

    def __init__(self, signal: Signal, start_ns: int) -> None:
        self.signal = signal
        self._start_ns = start_ns
        self._stretches: list[tuple[int, int | None, float]] = []  # from, to, latency_s

    def begin(self, now_ns: int, latency_s: float) -> None:
        """A stretch of inferences begins."""
        self._stretches.append((now_ns, None, latency_s))

    def end(self, now_ns: int) -> None:
        start, _, latency_s = self._stretches[-1]
        self._stretches[-1] = (start, now_ns, latency_s)

    def mean_mw(self, t0_ns: int, t1_ns: int) -> float:
        """Exact mean power between two times."""
        seconds = (t1_ns - t0_ns) * 1e-9
        return (self._energy_mj(t1_ns) - self._energy_mj(t0_ns)) / seconds

    def _energy_mj(self, t_ns: int) -> float:
        energy = self.signal.idle_mw * (t_ns - self._start_ns) * 1e-9
        for start, end, latency_s in self._stretches:
            if t_ns > start:
                until = t_ns if end is None else min(t_ns, end)
                energy += self.signal.energy_mj((until - start) * 1e-9, latency_s)
        return energy
