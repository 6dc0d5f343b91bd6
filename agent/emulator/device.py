"""A Snapdragon in software with a clock of its own: power from activity, heat from power,
throttling from heat, latency from throttling.

Time only passes in `advance`: nothing here sleeps. Between two steps power is constant, so energy
and the averaging registers of the power monitors are integrated exactly; heat is integrated by
explicit Euler steps far below its shortest time constant.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from agent.emulator import constants as c
from agent.emulator.personalities import PERSONALITIES, Personality
from agent.emulator.signals import Signal, SignalTrace
from agent.socs import SOCS

_JUNCTIONS = ("npu", "cpu", "gpu", "ddr", "soc")
_MAX_STEP_NS = 100_000_000


@dataclass(frozen=True)
class Load:
    """Power of each rail in mW (in the order of RAILS) at full clock, and how it is made."""

    rails_mw: tuple[float, ...]
    npu_busy: bool = False
    cpu_busy: bool = False


IDLE = Load(tuple(c.IDLE_MW[r] for r in c.RAILS))
LOADING = Load(tuple(c.IDLE_MW[r] + c.LOAD_MW[r] for r in c.RAILS), cpu_busy=True)


def inference_load(model: Mapping[str, Any]) -> Load:
    """The load of back-to-back inferences of a manifest's `device_model` block.

    NPU: active + HVX share + MACs per second * energy per MAC; DDR: bytes per second * energy per
    byte. Missing activity figures count as zero.
    """
    seconds = float(model["latency_us"]["total"]) * 1e-6
    activity = model.get("activity", {})
    macs_per_s = float(activity.get("macs", 0.0)) / seconds
    bytes_per_s = float(activity.get("ddr_bytes", 0.0)) / seconds
    npu = (
        c.NPU_ACTIVE_MW
        + float(activity.get("hvx_share", 0.0)) * c.NPU_HVX_MW
        + macs_per_s * c.MAC_PJ * 1e-9
    )
    extra = {
        "vdd_npu": min(npu, c.NPU_CEILING_MW),
        "vdd_cpu": c.CPU_POLLING_MW,
        "vdd_gpu": 0.0,
        "vdd_ddr": c.DDR_ACTIVE_MW + bytes_per_s * c.DDR_PJ_PER_BYTE * 1e-9,
        "vdd_soc": c.SOC_ACTIVE_MW,
    }
    return Load(tuple(c.IDLE_MW[r] + extra[r] for r in c.RAILS), npu_busy=True, cpu_busy=True)


class Register:
    """A power monitor's register: the mean over the last whole period, in the input's unit."""

    def __init__(self, period_ns: int, initial: float) -> None:
        self.period_ns = period_ns
        self.value = initial
        self._sum = 0.0  # value * ns since the last boundary

    def step(self, t0: int, t1: int, value: float, trace: SignalTrace | None = None) -> bool:
        """Constant `value` (or the trace) from t0 to t1. True when a period ended in between."""
        period = self.period_ns
        if trace is not None:
            boundary = t1 - t1 % period
            if boundary <= t0:
                return False
            self.value = trace.mean_mw(boundary - period, boundary)
            return True
        last = t1 - t1 % period
        if last <= t0:
            self._sum += value * (t1 - t0)
            return False
        first = t0 - t0 % period + period
        if last == first:
            self.value = (self._sum + value * (first - t0)) / period
        else:
            self.value = value
        self._sum = value * (t1 - last)
        return True


class Device:
    """The emulated device. Not thread-safe: one thread advances it."""

    def __init__(
        self,
        soc: str,
        *,
        seed: int = 0,
        start_ns: int = 3_600_000_000_000,
        personality: Personality = PERSONALITIES["board"],
        signal: Signal | None = None,
    ) -> None:
        self.soc = soc
        self.personality = personality
        self.trace = SignalTrace(signal, start_ns) if signal is not None else None
        self.spec = SOCS[soc]
        self.now_ns = start_ns
        self.load = IDLE
        self.level = 0
        self.clock = 1.0  # of the profile; the governor's step multiplies it
        self.memory_used = 0
        self.noise = random.Random(seed)
        self.charge_mah = c.BATTERY_MAH * c.BATTERY_START_PERCENT / 100
        self.input_suspended = False
        self.pace: Callable[[int], None] | None = None  # called after every step with now_ns
        self._governor_ns = start_ns
        self._tick_ns: int | None = None
        self._tick_period_ns = 0
        self._on_tick: Callable[[int], None] | None = None
        rails = self._rails_mw()
        board = self._board_mw(rails)
        self._temps = _steady_state(rails, board, personality.ambient_c)
        shown = board if self.trace is None else self.trace.signal.idle_mw
        self.rail_registers = [Register(personality.rail_period_ns, p) for p in rails]
        self.board_register = Register(personality.rail_period_ns, shown)
        self.gauge = Register(personality.gauge_period_ns, shown)
        self.gauge_updates = 0
        self.battery_mv = self.battery_ma = 0.0  # as the gauge shows them; negative: charging
        self._update_gauge()
        self.rail_readings = [*rails, shown]

    @property
    def clock_ratio(self) -> float:
        """NPU clock relative to the highest: profile and governor together."""
        return self.clock * c.STEP_CLOCK[self.level]

    def temperature(self, node: str) -> float:
        """Degrees C of npu, cpu, gpu, ddr, soc, board, skin or battery."""
        return self._temps[node]

    @property
    def charging(self) -> bool:
        return self.personality.plugged and not self.input_suspended

    def _update_gauge(self) -> None:
        """What the fuel gauge shows until its next update: current x voltage = mean power."""
        share = self.charge_mah / c.BATTERY_MAH
        open_mv = c.BATTERY_EMPTY_MV + (c.BATTERY_FULL_MV - c.BATTERY_EMPTY_MV) * share
        mw = self.gauge.value - (c.CHARGER_MW if self.charging else 0.0)
        self.battery_mv = open_mv - mw / open_mv * c.BATTERY_OHM * 1e3
        self.battery_ma = mw / self.battery_mv * 1e3 * self.noise.gauss(1.0, c.GAUGE_NOISE)

    def on_tick(self, period_ns: int, callback: Callable[[int], None] | None) -> None:
        """Call `callback(now_ns)` every `period_ns` of device time; None ends it."""
        self._on_tick = callback
        self._tick_period_ns = period_ns
        self._tick_ns = self.now_ns if callback is not None else None

    def advance(self, ns: int) -> None:
        """Let time pass under the present load."""
        end = self.now_ns + ns
        while self.now_ns < end:
            target = min(end, self.now_ns + _MAX_STEP_NS)
            if self._tick_ns is not None:
                target = min(target, max(self._tick_ns, self.now_ns))
            if target > self.now_ns:
                self._step(target)
                if self.pace is not None:
                    self.pace(self.now_ns)
            if self._tick_ns is not None and self.now_ns >= self._tick_ns:
                self._tick_ns += self._tick_period_ns
                assert self._on_tick is not None
                self._on_tick(self.now_ns)

    def _step(self, t1: int) -> None:
        t0 = self.now_ns
        rails = self._rails_mw()
        board = self._board_mw(rails)
        gauss = self.noise.gauss
        for i, (register, power) in enumerate(zip(self.rail_registers, rails, strict=True)):
            if register.step(t0, t1, power):
                self.rail_readings[i] = register.value * gauss(1.0, c.RAIL_NOISE)
        if self.board_register.step(t0, t1, board, self.trace):
            self.rail_readings[-1] = self.board_register.value * gauss(1.0, c.RAIL_NOISE)
        if self.gauge.step(t0, t1, board, self.trace):
            self.gauge_updates += 1
            self._update_gauge()
        seconds = (t1 - t0) * 1e-9
        self.charge_mah -= self.battery_ma * seconds / 3600
        self._heat(rails, board, seconds)
        self.now_ns = t1
        if t1 >= self._governor_ns:
            self._governor_ns = t1 + c.GOVERNOR_NS
            self._govern()

    def _rails_mw(self) -> tuple[float, ...]:
        if not self.load.npu_busy:
            return self.load.rails_mw
        # Only the NPU's rail follows its clock; the others move less data per second.
        ratio = self.clock_ratio
        npu_idle = c.IDLE_MW["vdd_npu"]
        npu = npu_idle + (self.load.rails_mw[0] - npu_idle) * ratio**c.POWER_EXPONENT
        ddr_idle = c.IDLE_MW["vdd_ddr"]
        ddr = ddr_idle + (self.load.rails_mw[3] - ddr_idle) * ratio
        _, cpu, gpu, _, soc = self.load.rails_mw
        return (npu, cpu, gpu, ddr, soc)

    def _board_mw(self, rails: tuple[float, ...]) -> float:
        return sum(rails) / c.REGULATOR_EFFICIENCY + c.BOARD_MW

    def _heat(self, rails: tuple[float, ...], board_mw: float, seconds: float) -> None:
        temps = self._temps
        board = temps["board"]
        into_board = (board_mw - sum(rails)) * 1e-3
        for name, power in zip(_JUNCTIONS, rails, strict=True):
            flow = (temps[name] - board) * c.JUNCTION_G
            into_board += flow
            temps[name] += (power * 1e-3 - flow) * seconds / c.JUNCTION_C
        to_skin = (board - temps["skin"]) * c.BOARD_SKIN_G
        to_battery = (board - temps["battery"]) * c.BATTERY_BOARD_G
        to_air = (temps["skin"] - self.personality.ambient_c) * c.SKIN_AIR_G
        temps["board"] += (into_board - to_skin - to_battery) * seconds / c.BOARD_C
        temps["skin"] += (to_skin - to_air) * seconds / c.SKIN_C
        temps["battery"] += to_battery * seconds / c.BATTERY_C

    def _govern(self) -> None:
        if self.trace is not None:
            return  # a synthetic signal wants its latency exact
        skin = self._temps["skin"]
        level = sum(skin >= limit for limit in c.SKIN_STEPS_C)
        if self._temps["npu"] >= c.JUNCTION_LIMIT_C:
            level = max(level, self.level + 1)
        if level < self.level and skin > c.SKIN_STEPS_C[self.level - 1] - c.HYSTERESIS_C:
            level = self.level
        self.level = min(level, len(c.STEP_CLOCK) - 1)


def _steady_state(rails: tuple[float, ...], board_mw: float, ambient_c: float) -> dict[str, float]:
    """Temperatures after resting forever at this power: a device that nobody has touched."""
    watts = board_mw * 1e-3
    skin = ambient_c + watts / c.SKIN_AIR_G
    board = skin + watts / c.BOARD_SKIN_G
    temps = {n: board + p * 1e-3 / c.JUNCTION_G for n, p in zip(_JUNCTIONS, rails, strict=True)}
    return {**temps, "board": board, "skin": skin, "battery": board}


def block_latencies(
    total_us: float, count: int, *, rng: np.random.Generator
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """(count,) latencies in us: lognormal jitter around total_us, and rare preemption."""
    latencies = total_us * np.exp(rng.normal(0.0, c.LATENCY_SIGMA, count))
    latencies[rng.random(count) < c.PREEMPTION_SHARE] *= c.PREEMPTION_FACTOR
    return latencies
