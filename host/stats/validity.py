"""The rules that say whether a run's figures may be used: one table.

A rule that fails for the whole run makes it `invalid`; a rule about time or power makes only those
figures invalid; a rule that only warns tells the user what to do next. Nothing is ever dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from host.stats.changepoint import warm_up_blocks
from host.stats.energy import Energy
from host.stats.intervals import Estimate
from host.stats.phases import SUSTAINED
from host.stats.power import PowerTrace
from host.store.rows import Block, Floats, RunData

MIN_BLOCKS = 6  # fewer give no 95 % interval of a median
MIN_UPDATES = 6  # distinct power readings in the timed windows
MAX_RATE_SHARE = 0.10  # of the energy, from the sensor's rate alone
CLOCK_CHANGE = 0.05  # between blocks, of the NPU's clock
WIDE_INTERVAL = 0.10  # half width relative to the median
OUTLIER_FENCE = 3.0  # times the quartile range beyond the quartiles (Tukey's far out)
GOLDEN_SQNR_DB = 20.0
WARM_UP_SHIFT = 0.01  # of the latency before the change point
HOT_START_C = 8.0  # a block that starts so much hotter than the coolest one
DURATION_TOLERANCE = 0.99
DISCHARGING = 0.0


class Scope(StrEnum):
    RUN = "run"  # the run is invalid
    TIME = "time"  # latency, throughput, power and energy are invalid
    POWER = "power"  # power and energy are invalid
    WARNING = "warning"  # the figures stand; the user should know


@dataclass(frozen=True)
class Limits:
    """What a run must reach: its profile, and what the host knows beside the raw data."""

    min_inferences: int
    min_duration_s: float
    min_blocks: int = MIN_BLOCKS
    allow_throttling: bool = False  # profile `sustained` wants the steady, throttled state
    cooldown_failure: str = ""  # why the cooldown gate gave up; empty: it did not
    partial_time: bool = False  # an emulated device's time leaves the arithmetic out


@dataclass(frozen=True)
class Evidence:
    """What the rules look at. `block_us` (blocks,): the latency of each block."""

    data: RunData
    limits: Limits
    block_us: Floats
    latency: Estimate | None
    trace: PowerTrace | None
    energy: Energy | None


@dataclass(frozen=True)
class Finding:
    """A rule that was broken: what is wrong, and what to do."""

    rule: str
    scope: Scope
    reason: str
    advice: str

    def __str__(self) -> str:
        """One line for a person: what is wrong, and what to do next."""
        return f"{self.reason[:1].upper()}{self.reason[1:]}. {self.advice}"


@dataclass(frozen=True)
class Rule:
    """`check` returns the reason when the rule is broken, and an empty string otherwise."""

    name: str
    scope: Scope
    check: Callable[[Evidence], str]
    wants: str
    advice: str
    sustained_advice: str = ""  # where a run of that profile needs another


def broken_rules(evidence: Evidence) -> list[Finding]:
    """Every broken rule, in the order of the table."""
    found = []
    for rule in RULES:
        if reason := rule.check(evidence):
            sustained = evidence.data.profile == SUSTAINED and rule.sustained_advice
            found.append(Finding(rule.name, rule.scope, reason, sustained or rule.advice))
    return found


def outlier_causes(data: RunData, block_us: Floats) -> dict[int, str]:
    """block_index -> likely cause, for blocks far outside the quartiles. They stay in."""
    if len(block_us) < 4:
        return {}
    low, high = np.percentile(block_us, [25, 75])
    fence = OUTLIER_FENCE * max(high - low, 1e-3 * float(np.median(block_us)))
    far = (block_us < low - fence) | (block_us > high + fence)
    return {
        block.block_index: _cause(data, block)
        for block, out in zip(data.blocks, far, strict=True)
        if out
    }


def _cause(data: RunData, block: Block) -> str:
    if block.throttled:
        return "throttled"
    for channel in data.channels:
        if channel.kind == "frequency":
            inside = _inside(data, channel.channel, block)
            everywhere = _timed(data, channel.channel)
            if len(inside) and len(everywhere) and _moved(inside, everywhere):
                return f"{channel.name} changed"
    if any(value != DISCHARGING for value in _status(data, block)):
        return "charging"
    return "no cause found in clocks, throttling or charger"


def _moved(inside: Floats, everywhere: Floats) -> bool:
    usual = float(np.median(everywhere))
    return usual > 0 and abs(float(np.median(inside)) / usual - 1) > CLOCK_CHANGE


def _inside(data: RunData, channel: int, block: Block) -> Floats:
    samples = data.samples.get(channel)
    if samples is None:
        return np.empty(0)
    span = slice(*np.searchsorted(samples.t_ns, [block.t_first_ns, block.t_last_ns + 1]))
    return samples.value[span]


def _timed(data: RunData, channel: int) -> Floats:
    parts = [_inside(data, channel, block) for block in data.blocks]
    return np.concatenate(parts) if parts else np.empty(0)


def _status(data: RunData, block: Block) -> Floats:
    states = [c for c in data.channels if c.kind == "state" and c.site == "battery"]
    parts = [_inside(data, channel.channel, block) for channel in states]
    return np.concatenate(parts) if parts else np.empty(0)


def _few_blocks(e: Evidence) -> str:
    n, wanted = len(e.data.blocks), e.limits.min_blocks
    return f"{n} timed blocks, {wanted} are needed for a 95 % interval" if n < wanted else ""


def _few_inferences(e: Evidence) -> str:
    n = sum(block.inferences for block in e.data.blocks)
    wanted = e.limits.min_inferences
    return f"{n} inferences, the profile wants {wanted}" if n < wanted else ""


def _short(e: Evidence) -> str:
    seconds = sum(block.duration_ns for block in e.data.blocks) * 1e-9
    wanted = e.limits.min_duration_s
    if seconds >= wanted * DURATION_TOLERANCE:
        return ""
    return f"timed for {seconds:.3g} s, the profile wants {wanted:g} s"


def _throttled(e: Evidence) -> str:
    blocks = [block.block_index for block in e.data.blocks if block.throttled]
    if not blocks or e.limits.allow_throttling:
        return ""
    return f"throttled in {len(blocks)} of {len(e.data.blocks)} blocks"


def _partial_time(e: Evidence) -> str:
    if not e.limits.partial_time:
        return ""
    return (
        "a bare context does not tell its arithmetic, so the emulated device's time is only a "
        "lower bound"
    )


def _cooldown(e: Evidence) -> str:
    late = [c for c in e.data.cooldowns if c.timed_out]
    if not late:
        return e.limits.cooldown_failure
    return f"did not cool down before {len(late)} of {len(e.data.blocks)} blocks: {late[0].message}"


def _golden(e: Evidence) -> str:
    golden = e.data.golden
    if golden is None or golden.bit_equal or golden.sqnr_db >= GOLDEN_SQNR_DB:
        return ""
    return f"outputs are {golden.sqnr_db:.1f} dB from those the compiled context gave"


def _golden_close(e: Evidence) -> str:
    golden = e.data.golden
    if golden is None or golden.bit_equal or golden.sqnr_db < GOLDEN_SQNR_DB:
        return ""
    return f"outputs are not bit-equal to the compiled context's ({golden.sqnr_db:.1f} dB)"


def _clock(e: Evidence) -> str:
    for channel in e.data.channels:
        if channel.kind == "frequency" and channel.site == "npu":
            parts = [_inside(e.data, channel.channel, block) for block in e.data.blocks]
            medians = [float(np.median(part)) for part in parts if len(part)]
            if medians and min(medians) < (1 - CLOCK_CHANGE) * max(medians):
                return (
                    f"{channel.name} moved between {min(medians):.0f} and {max(medians):.0f} "
                    f"{channel.unit}"
                )
    return ""


def _charging(e: Evidence) -> str:
    if e.trace is None or not e.trace.battery:
        return ""
    states = [_status(e.data, block) for block in e.data.blocks]
    wrong = sum(bool(len(s)) and bool(np.any(s != DISCHARGING)) for s in states)
    return f"the battery was not discharging in {wrong} of {len(states)} blocks" if wrong else ""


def _charger_heat(e: Evidence) -> str:
    if e.trace is not None and e.trace.battery:
        return ""
    wrong = any(np.any(_status(e.data, block) != DISCHARGING) for block in e.data.blocks)
    return "the charger was connected; charging heats the device" if wrong else ""


def few_readings(updates: int, update_hz: float) -> str:
    """Why there is no figure of a sensor that hardly changed while the blocks were timed."""
    return (
        f"{updates} power readings in the timed windows; the reading changes {update_hz:.3g} "
        "times a second"
    )


def _slow_sensor(e: Evidence) -> str:
    if e.trace is None or e.energy is None:
        return ""
    if e.energy.updates < MIN_UPDATES:
        return few_readings(e.energy.updates, e.trace.update_hz)
    rate = f"the reading changes {e.trace.update_hz:.3g} times a second"
    if e.energy.rate_share > MAX_RATE_SHARE:
        return (
            f"the sensor's rate alone leaves {e.energy.rate_share:.0%} of the energy open; {rate}"
        )
    return ""


def _no_baseline(e: Evidence) -> str:
    if e.energy is None or e.energy.net_mj is not None:
        return ""
    return "no idle baseline around every block, so there is no net energy"


def _partial(e: Evidence) -> str:
    return f"power is of one part only ({e.trace.method})" if e.trace and e.trace.partial else ""


def _wide(e: Evidence) -> str:
    if e.latency is None or not np.isfinite(e.latency.low) or e.latency.value <= 0:
        return ""
    half = (e.latency.high - e.latency.low) / 2 / e.latency.value
    return f"the latency interval is +-{half:.0%} wide" if half > WIDE_INTERVAL else ""


def _outliers(e: Evidence) -> str:
    causes = outlier_causes(e.data, e.block_us)
    listed = ", ".join(f"block {index + 1} ({cause})" for index, cause in causes.items())
    return f"far from the others: {listed}" if listed else ""


def _warm_up(e: Evidence) -> str:
    found = warm_up_blocks(e.block_us, _npu_temperature(e.data))
    if not found:
        return ""
    before = float(np.median(e.block_us[:found]))
    after = float(np.median(e.block_us[found:]))
    # A first block on a cooler chip that is not slower or faster for it needs no warning.
    if abs(before / after - 1) < WARM_UP_SHIFT:
        return ""
    return (
        f"latency settles only after {found} of {len(e.block_us)} blocks "
        f"({before / after - 1:+.1%} before)"
    )


def _npu_temperature(data: RunData) -> Floats | None:
    """Mean temperature of the first NPU zone per block (blocks,); None where a block has none."""
    for channel in data.channels:
        if (channel.kind, channel.site) == ("temperature", "npu"):
            parts = [_inside(data, channel.channel, block) for block in data.blocks]
            if all(len(part) for part in parts):
                return np.array([part.mean() for part in parts])
    return None


def _hot_start(e: Evidence) -> str:
    worst = 0.0
    name = ""
    for channel in e.data.channels:
        samples = e.data.samples.get(channel.channel)
        if channel.kind != "temperature" or channel.site not in ("npu", "skin") or samples is None:
            continue
        if not len(samples.t_ns) or not e.data.blocks:
            continue
        t0 = samples.t_ns[0]
        starts = [block.t_first_ns - t0 for block in e.data.blocks]
        at_start = np.interp(starts, samples.t_ns - t0, samples.value)
        if (rise := float(np.ptp(at_start))) > worst:
            worst, name = rise, channel.name
    if worst <= HOT_START_C:
        return ""
    return f"{name} differs by {worst:.0f} C between the starts of blocks"


_RUN, _TIME, _POWER, _WARN = Scope.RUN, Scope.TIME, Scope.POWER, Scope.WARNING

RULES: tuple[Rule, ...] = (
    Rule(
        "blocks", _RUN, _few_blocks, f"at least {MIN_BLOCKS} timed blocks",
        "Look at why blocks are missing, and run it again.",
    ),
    Rule(
        "min_count", _RUN, _few_inferences, "the profile's number of inferences",
        "Use a shorter --profile, or a faster variant.",
    ),
    Rule(
        "min_duration", _RUN, _short, "the profile's timed duration",
        "Use a shorter --profile, or run it again.",
    ),
    Rule(
        "throttled", _RUN, _throttled, "no throttling, except in the profile `sustained`",
        "Cool the device, or use --profile sustained.",
    ),
    Rule(
        "cooldown", _RUN, _cooldown, "a device that cooled down before its block",
        "Let the device cool, or move it out of the sun.",
    ),
    Rule(
        "golden", _RUN, _golden,
        f"outputs within {GOLDEN_SQNR_DB:.0f} dB SQNR of the compiled context's",
        "Check that device and compiler use the same QAIRT.",
    ),
    Rule(
        "clock_changed", _RUN, _clock,
        f"an NPU clock within {CLOCK_CHANGE:.0%} between blocks, where it can be read",
        "Fix the clock: --perf-profile burst.",
    ),
    Rule(
        "partial_time", _TIME, _partial_time, "a graph to predict from, on an emulated device",
        "Bench the model or its .qnn, or run it on a device.",
    ),
    Rule(
        "charging", _POWER, _charging, "a discharging battery, where power is read at it",
        "Cut the charger; `dumpsys battery unplug` only pretends to.",
    ),
    Rule(
        "sensor_too_slow", _POWER, _slow_sensor,
        f"{MIN_UPDATES} power readings in the timed windows, and at most {MAX_RATE_SHARE:.0%} "
        "of the energy open for want of more",
        "Use a longer --profile.",
    ),
    Rule(
        "no_baseline", _WARN, _no_baseline, "an idle baseline around every block",
        "Use a profile with idle baselines.",
    ),
    Rule(
        "partial_power", _WARN, _partial, "power of the whole device",
        "Compare it only on this device.",
    ),
    Rule(
        "charger", _WARN, _charger_heat, "no charger, which heats the device",
        "Cut the charger for comparable heat.",
    ),
    Rule(
        "golden_close", _WARN, _golden_close, "outputs bit-equal to the compiled context's",
        "Expected between steppings of an SoC.",
    ),
    Rule(
        "wide_interval", _WARN, _wide, f"a latency interval within ±{WIDE_INTERVAL:.0%}",
        "Use a longer --profile, and close other apps.",
        "The device had not settled in its last five minutes: see the run's trace.",
    ),
    Rule(
        "outliers", _WARN, _outliers,
        f"no block farther than {OUTLIER_FENCE:g} quartile ranges outside the quartiles",
        "See the trace of the run around these blocks.",
    ),
    Rule(
        "warm_up", _WARN, _warm_up,
        f"no change point with latency {WARM_UP_SHIFT:.0%} off before it",
        "Use a longer warm-up, or --profile sustained.",
        "The device was still slowing down or recovering: see the trace of the run.",
    ),
    Rule(
        "hot_start", _WARN, _hot_start,
        f"block starts within {HOT_START_C:g} C of each other (NPU, skin)",
        "Let the device cool between blocks.",
    ),
)  # fmt: skip
