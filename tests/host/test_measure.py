from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from host.errors import RunStatus
from host.measure import Limits, assess, block_latency_us, block_values, measure
from host.stats.phases import BLOCK_S, BLOCKS, BURST_BLOCKS, STEADY_BLOCKS, block_seconds
from host.stats.power import choose_power, measured_updates
from host.stats.validity import Scope, outlier_causes
from host.store import Block, Channel, Golden, Load, Mark, RunData, Samples
from host.store.rows import Cooldown, Memory
from quant.figures import Provenance

S = 1_000_000_000
LIMITS = Limits(min_inferences=60, min_duration_s=6.0)
BOARD = Channel(1, "vph_pwr", "board", "power", "mW", "hwmon power1_input")
RAIL = Channel(2, "vdd_nsp", "npu", "power", "mW")
ZONE = Channel(3, "nsphmx-0", "npu", "temperature", "C")
AMPS = Channel(4, "battery_current", "battery", "current", "mA")
VOLTS = Channel(5, "battery_voltage", "battery", "voltage", "mV")
STATE = Channel(6, "battery_status", "battery", "state", "0 discharging")


def ramp(channel: int, seconds: float, hz: float, value) -> Samples:
    t = np.arange(0, int(seconds * S), int(S / hz), dtype=np.int64)
    return Samples(channel, t, np.array([value(x / S) for x in t], np.float64))


def run_data(*, blocks: int = 6, idle_mw: float = 500.0, load_mw: float = 2500.0) -> RunData:
    """Blocks of 1 s with 20 inferences, each 4 s long: 1 s idle, 1 s warm-up, timed, 1 s idle."""
    rng = np.random.default_rng(3)
    made, marks = [], []
    for i in range(blocks):
        start = 4 * i * S
        made.append(
            Block(i, 20, start + 2 * S, start + 3 * S,
                  (50_000 * (1 + 0.001 * i + 0.0005 * rng.standard_normal(20))).astype(np.float32))
        )  # fmt: skip
        marks += [
            Mark("idle_before", start, start + S, i),
            Mark("timed", start + 2 * S, start + 3 * S, i),
            Mark("idle_after", start + 3 * S, start + 4 * S, i),
        ]

    def power(t: float) -> float:
        # The 1e-6 t makes every reading differ, as a real sensor's do.
        return (load_mw if 1 <= t % 4 < 3 else idle_mw) + 1e-6 * t

    seconds = 4 * blocks + 1
    return RunData(
        "r",
        tuple(made),
        channels=(RAIL, BOARD, ZONE),
        samples={
            1: ramp(1, seconds, 100, power),
            2: ramp(2, seconds, 100, lambda t: power(t) / 5),
            3: ramp(3, seconds, 10, lambda t: 40 + t / 4),
        },
        marks=tuple(marks),
        load=Load(0.25, 0.05, 0.06, 48_000_000),
    )


def by_name(figures):
    return {figure.metric: figure for figure in figures}


def test_figures_of_a_clean_run():
    found = assess(run_data(), Provenance.EMULATED_DEVICE, LIMITS)
    figures = by_name(found.figures)
    assert (found.status, found.message) == (RunStatus.OK, "")
    assert {f.provenance for f in found.figures} == {Provenance.EMULATED_DEVICE}
    latency = figures["latency_ms"]
    blocks = sorted(block_latency_us(block) / 1e3 for block in run_data().blocks)
    assert latency.value == pytest.approx(np.median(blocks)) and latency.n == 6
    assert (latency.ci_low, latency.ci_high) == (
        pytest.approx(blocks[0]),
        pytest.approx(blocks[-1]),
    )
    deviations = np.abs(np.array(blocks) - np.median(blocks))
    assert figures["latency_mad_ms"].value == pytest.approx(np.median(deviations), rel=1e-6)
    assert figures["latency_min_ms"].value < blocks[0]
    assert figures["latency_min_ms"].n == 120
    assert figures["throughput_items_per_sec"].value == pytest.approx(20)
    assert latency.value < figures["latency_p90_ms"].value < 51
    assert figures["latency_p99_ms"].value is None
    assert "1000 are needed" in figures["latency_p99_ms"].reason
    assert figures["power_mw"].value == pytest.approx(2500, rel=0.01)
    # 20 inferences in 1 s at 2500 mW over a baseline of 500 mW.
    assert figures["energy_gross_mj"].value == pytest.approx(125, rel=0.01)
    assert figures["energy_mj"].value == pytest.approx(100, rel=0.02)
    assert figures["energy_mj"].ci_low < 100 < figures["energy_mj"].ci_high
    assert figures["startup_ms"].value == 250 and figures["memory_mb"].value == 48
    assert figures["max_temperature_c"].value == pytest.approx(45.75, abs=0.05)
    assert figures["max_temperature_c"].reason == "nsphmx-0"
    assert found.power_method == "board rail: vph_pwr (hwmon power1_input)"
    assert found.power_update_hz == pytest.approx(100)
    assert measure(run_data(), Provenance.MEASURED, LIMITS)[0].provenance is Provenance.MEASURED


def test_an_idle_baseline_that_drifts_cancels():
    data = run_data()
    drifting = replace(data.samples[1], value=data.samples[1].value + 20 * data.samples[1].t_ns / S)
    found = by_name(
        measure(replace(data, samples={**data.samples, 1: drifting}), Provenance.MEASURED, LIMITS)
    )
    assert found["energy_mj"].value == pytest.approx(100, rel=0.02)
    assert found["energy_gross_mj"].value > 130


def test_power_prefers_the_board_then_the_battery_then_one_rail():
    data = run_data()
    seconds = 25
    battery = {
        4: ramp(4, seconds, 4, lambda t: -600 - t),  # a maker's sign
        5: ramp(5, seconds, 4, lambda t: 4000.0),
    }
    trace = choose_power((RAIL, AMPS, VOLTS), {**data.samples, **battery})
    assert trace.method == "battery current x voltage: battery_current x battery_voltage"
    assert trace.battery and trace.mw[0] == pytest.approx(2400)
    assert trace.update_hz == pytest.approx(4)
    rail = choose_power((RAIL, ZONE), data.samples)
    assert rail.partial and rail.method == "npu rail only: vdd_nsp"
    assert choose_power((RAIL, BOARD, AMPS, VOLTS), {**data.samples, **battery}).method.startswith(
        "board rail"
    )
    assert choose_power((ZONE,), data.samples) is None


def test_energy_from_a_counter_equals_energy_from_power():
    data = run_data()
    power = data.samples[1]
    mj = np.concatenate([[0], np.cumsum(power.value[:-1] * np.diff(power.t_ns) / S)])
    counter = Channel(9, "energy0", "board", "energy", "mJ")
    trace = choose_power((counter,), {9: Samples(9, power.t_ns, mj)})
    assert trace.energy_mj(2 * S, 3 * S) == pytest.approx(2500, rel=0.01)


def test_energy_is_exact_at_large_times():
    t = np.arange(5, dtype=np.int64) * S + 2**62
    trace = choose_power((BOARD,), {1: Samples(1, t, np.array([0.0, 1, 2, 3, 4]) * 1000)})
    assert trace.energy_mj(2**62 + S // 2, 2**62 + 3 * S) == pytest.approx(4375)
    assert trace.energy_mj(2**62 - 1, 2**62 + S) is None


def test_a_slow_sensor_makes_power_invalid_and_says_its_rate():
    data = run_data()
    held = ramp(1, 25, 100, lambda t: 2500.0 + 10 * (t // 5))
    found = assess(replace(data, samples={**data.samples, 1: held}), Provenance.MEASURED, LIMITS)
    figures = by_name(found.figures)
    assert found.status is RunStatus.OK and figures["latency_ms"].valid
    assert not figures["energy_mj"].valid and not figures["power_mw"].valid
    assert "changes 0.2 times a second" in figures["energy_mj"].reason
    assert found.power_update_hz == pytest.approx(0.2)


def test_rate_of_a_sensor_counts_changes_not_reads():
    t = np.arange(1000, dtype=np.int64) * 10_000_000
    updates, hz = measured_updates(t, np.repeat(np.arange(10.0), 100))
    assert len(updates) == 10 and hz == pytest.approx(1.0)
    assert measured_updates(t, np.ones(1000))[1] == 0.0


def test_charging_makes_only_power_invalid():
    data = run_data()
    samples = {
        4: ramp(4, 25, 20, lambda t: 600 + t),
        5: ramp(5, 25, 20, lambda t: 4000.0),
        6: ramp(6, 25, 4, lambda t: 1.0 if 9 < t < 12 else 0.0),
    }
    found = assess(
        replace(data, channels=(AMPS, VOLTS, STATE), samples=samples), Provenance.MEASURED, LIMITS
    )
    figures = by_name(found.figures)
    assert found.status is RunStatus.OK and figures["latency_ms"].valid
    assert figures["power_mw"].reason.startswith("the battery was not discharging in 1 of 6")
    on_rail = assess(
        replace(data, channels=(BOARD, STATE), samples={1: data.samples[1], 6: samples[6]}),
        Provenance.MEASURED,
        LIMITS,
    )
    assert by_name(on_rail.figures)["power_mw"].valid
    assert "charger" in [finding.rule for finding in on_rail.warnings]


@pytest.mark.parametrize(
    ("change", "limits", "reason"),
    [
        (lambda d: replace(d, blocks=d.blocks[:5]), LIMITS, "5 timed blocks"),
        (lambda d: d, replace(LIMITS, min_inferences=1000), "120 inferences"),
        (lambda d: d, replace(LIMITS, min_duration_s=60), "timed for 6 s"),
        (lambda d: d, replace(LIMITS, cooldown_failure="still 48 C"), "still 48 C"),
        (
            lambda d: replace(d, cooldowns=(Cooldown(2, 9, True, "nsphmx-0 stayed at 61 C"),)),
            LIMITS,
            "did not cool down before 1 of 6 blocks: nsphmx-0 stayed at 61 C",
        ),
        (lambda d: replace(d, golden=Golden(4, False, 12.0)), LIMITS, "12.0 dB"),
        (
            lambda d: replace(d, blocks=(*d.blocks[:5], replace(d.blocks[5], throttled=True))),
            LIMITS,
            "throttled in 1 of 6",
        ),
        (
            lambda d: replace(
                d,
                channels=(Channel(8, "npu_clk", "npu", "frequency", "MHz"),),
                samples={8: ramp(8, 25, 10, lambda t: 1000.0 if t < 12 else 800.0)},
            ),
            LIMITS,
            "npu_clk moved between 800 and 1000",
        ),
    ],
)
def test_rules_that_make_a_run_invalid(change, limits, reason):
    found = assess(change(run_data()), Provenance.MEASURED, limits)
    assert found.status is RunStatus.INVALID and reason in found.message
    latency = by_name(found.figures)["latency_ms"]
    assert not latency.valid and reason in latency.reason and latency.value is not None
    assert (
        by_name(found.figures).get("startup_ms") is None
        or by_name(found.figures)["startup_ms"].valid
    )


def test_sustained_may_throttle():
    data = run_data()
    hot = replace(data, blocks=tuple(replace(b, throttled=True) for b in data.blocks))
    allowed = replace(LIMITS, allow_throttling=True)
    assert assess(hot, Provenance.MEASURED, allowed).status is RunStatus.OK


def test_outliers_stay_in_and_get_a_cause():
    data = run_data()
    slow = replace(data.blocks[2], per_iteration_us=data.blocks[2].per_iteration_us * 2)
    odd = replace(data, blocks=(*data.blocks[:2], slow, *data.blocks[3:]))
    found = assess(odd, Provenance.MEASURED, LIMITS)
    assert by_name(found.figures)["latency_ms"].ci_high == pytest.approx(100, rel=0.01)
    reasons = {finding.rule: finding.reason for finding in found.findings}
    assert "block 3 (no cause found" in reasons["outliers"]
    assert str(found.warnings[-1]).startswith("Far from the others: block 3")
    assert str(found.warnings[-1]).endswith("See the trace of the run around these blocks.")
    assert all(finding.scope is Scope.WARNING for finding in found.findings)
    throttled = replace(
        odd, blocks=(*odd.blocks[:2], replace(slow, throttled=True), *odd.blocks[3:])
    )
    latencies = np.array([block_latency_us(block) for block in throttled.blocks])
    assert outlier_causes(throttled, latencies) == {2: "throttled"}


def test_without_single_iterations_the_window_gives_the_mean():
    data = run_data()
    none = np.empty(0, np.float32)
    blocks = tuple(
        replace(b, per_iteration_us=none, window_method="two_lengths") for b in data.blocks
    )
    figures = by_name(measure(replace(data, blocks=blocks), Provenance.MEASURED, LIMITS))
    assert figures["latency_ms"].value == pytest.approx(50)
    assert figures["latency_min_ms"].value is None
    assert "two_lengths" in figures["latency_p90_ms"].reason


def test_a_run_without_blocks_or_power_has_reasons_instead_of_figures():
    empty = RunData("r", ())
    figures = by_name(measure(empty, Provenance.MEASURED, LIMITS))
    assert figures["latency_ms"].value is None and not figures["latency_ms"].valid
    bare = by_name(measure(replace(run_data(), channels=()), Provenance.MEASURED, LIMITS))
    assert bare["energy_mj"].reason == "no power channel"


def test_memory_comes_from_its_own_pass_and_else_from_the_load():
    figures = by_name(measure(run_data(), Provenance.MEASURED, LIMITS))
    assert (figures["memory_mb"].value, figures["memory_mb"].n) == (48.0, 1)
    assert "memory_steady_mb" not in figures
    data = replace(run_data(), memory=Memory(61_000_000, 55_500_000, 20_000_000, 12))
    figures = by_name(measure(data, Provenance.MEASURED, LIMITS))
    assert (figures["memory_mb"].value, figures["memory_mb"].n) == (61.0, 12)
    assert figures["memory_steady_mb"].value == 55.5


def sustained_data() -> RunData:
    """25 blocks without a pause: 50 ms for the burst, then slower by and by, 80 ms at last."""
    ms = [50.0] * BURST_BLOCKS + [60.0] * (BLOCKS - BURST_BLOCKS - STEADY_BLOCKS)
    ms += [80.0] * STEADY_BLOCKS
    blocks, at = [], 10 * S
    for i, latency in enumerate(ms):
        end = at + round(block_seconds(i) * S)
        iterations = latency * 1e3 + 0.5 * i + np.arange(round(block_seconds(i) * 1e3 / latency))
        blocks.append(
            Block(i, len(iterations), at, end, iterations.astype(np.float32), throttled=i > 9)
        )
        at = end
    marks = (Mark("idle_before", 0, 10 * S, 0), Mark("idle_after", at, at + 10 * S, BLOCKS - 1))
    power = ramp(1, at / S + 10, 10, lambda t: (500 if t < 10 or t > at / S else 2500) + 1e-6 * t)
    return RunData("r", tuple(blocks), (BOARD,), {BOARD.channel: power}, marks, profile="sustained")


def test_a_sustained_run_has_its_burst_and_its_steady_phase_apart():
    data = sustained_data()
    limits = Limits(1, 600.0, allow_throttling=True)
    result = assess(data, Provenance.MEASURED, limits)
    figures = by_name(result.figures)
    assert result.status == "ok", result.message
    assert figures["latency_burst_ms"].value == pytest.approx(50.0, rel=0.01)
    assert figures["latency_burst_ms"].n == BURST_BLOCKS
    assert figures["latency_ms"].value == pytest.approx(80.2, rel=0.01)
    assert figures["latency_ms"].n == STEADY_BLOCKS
    assert figures["power_mw"].value == pytest.approx(2500, rel=0.001)
    # The blocks in between have no idle time of their own: the ends of the stretch serve all.
    per_inference = 2000 * BLOCK_S / len(data.blocks[-1].per_iteration_us)
    assert figures["energy_mj"].value == pytest.approx(per_inference, rel=0.01)
    assert len(block_values(data)["latency_ms"]) == STEADY_BLOCKS
    assert not [f for f in result.findings if f.rule == "no_baseline"]


def test_a_sustained_run_that_did_not_settle_is_not_told_to_be_sustained():
    data = sustained_data()
    still = [
        replace(b, per_iteration_us=b.per_iteration_us * (1.3 if b.block_index > 19 else 1.0))
        for b in data.blocks
    ]
    found = assess(replace(data, blocks=tuple(still)), Provenance.MEASURED, Limits(1, 600.0))
    advice = {f.rule: f.advice for f in found.findings}
    assert "still slowing down" in advice["warm_up"]
    assert "--profile" not in advice["warm_up"] + advice.get("wide_interval", "")


def test_a_sustained_run_that_lacks_its_first_blocks_has_no_burst():
    data = sustained_data()
    result = assess(replace(data, blocks=data.blocks[2:]), Provenance.MEASURED, Limits(1, 600.0))
    burst = by_name(result.figures)["latency_burst_ms"]
    assert burst.value is None and burst.reason == "the first blocks are missing"
