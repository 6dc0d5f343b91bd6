"""The emulated device: energy adds up, heat follows physics, its files show what it knows."""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
import threading
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

from agent.emulator import constants as c
from agent.emulator.adb.sandbox import host_programs
from agent.emulator.device import IDLE, Device, Load, Register, block_latencies, inference_load
from agent.emulator.personalities import PERSONALITIES
from agent.emulator.signals import (
    SIGNALS,
    Bursts,
    Constant,
    Ramp,
    SignalTrace,
    Steps,
    parse_signal,
)
from agent.emulator.sysfs import SysfsTree
from agent.sensors import discover
from agent.socs import SOCS
from protos import agent_pb2 as pb

SECOND = 1_000_000_000
MODEL = {
    "latency_us": {"total": 1000.0},
    "activity": {"macs": 2e9, "hvx_share": 0.5, "ddr_bytes": 10e6},
}


def advance(device: Device, load: Load, seconds: float) -> None:
    device.load = load
    device.advance(round(seconds * SECOND))


# --- Power -------------------------------------------------------------------------------------


def test_power_of_a_load_is_the_sum_of_its_documented_parts():
    load = dict(zip(c.RAILS, inference_load(MODEL).rails_mw, strict=True))
    macs_per_s, bytes_per_s = 2e12, 10e9
    npu = c.IDLE_MW["vdd_npu"] + c.NPU_ACTIVE_MW + 0.5 * c.NPU_HVX_MW
    assert load["vdd_npu"] == pytest.approx(npu + macs_per_s * c.MAC_PJ * 1e-9)
    ddr = c.IDLE_MW["vdd_ddr"] + c.DDR_ACTIVE_MW
    assert load["vdd_ddr"] == pytest.approx(ddr + bytes_per_s * c.DDR_PJ_PER_BYTE * 1e-9)


def test_more_work_per_second_costs_more_up_to_the_rails_limit():
    def npu(macs: float) -> float:
        activity = {**MODEL["activity"], "macs": macs}
        return inference_load({**MODEL, "activity": activity}).rails_mw[0]

    assert npu(1e9) < npu(4e9) < npu(1e12) == c.IDLE_MW["vdd_npu"] + c.NPU_CEILING_MW


@pytest.mark.parametrize("steps", [[7], [1, 2, 4], [3, 3, 3, 3], [10, 10], [25], [4, 6, 15]])
def test_a_register_holds_the_mean_of_the_last_whole_period(steps):
    """Against a mean over single nanoseconds, for steps that end anywhere in the period of 10."""
    register = Register(10, 0.0)
    trace: list[float] = []
    for i, length in enumerate(steps):
        value = float(i + 1)
        register.step(len(trace), len(trace) + length, value)
        trace += [value] * length
    whole = len(trace) // 10 * 10
    assert register.value == pytest.approx(
        float(np.mean(trace[whole - 10 : whole])) if whole else 0
    )


def test_the_slower_clock_draws_less_and_takes_longer_within_the_published_exponent():
    device = Device("sm8650")
    device.load = inference_load(MODEL)
    full = device._rails_mw()
    device.level = 2
    slow = device._rails_mw()
    ratio = (slow[0] - c.IDLE_MW["vdd_npu"]) / (full[0] - c.IDLE_MW["vdd_npu"])
    assert ratio == pytest.approx(c.STEP_CLOCK[2] ** c.POWER_EXPONENT)
    assert slow[1] == full[1]


def test_the_battery_loses_the_energy_that_the_board_used():
    device = Device("sm8650")
    before = device.charge_mah
    advance(device, inference_load(MODEL), 30)
    board_mw = device.board_register.value
    used_mah = board_mw / device.battery_mv * 1e3 * 30 / 3600
    assert before - device.charge_mah == pytest.approx(used_mah, rel=0.05)
    shown_mw = device.battery_ma * device.battery_mv / 1e3
    assert shown_mw == pytest.approx(device.gauge.value, rel=5 * c.GAUGE_NOISE)


# --- Heat --------------------------------------------------------------------------------------


def test_a_resting_device_stays_as_it_is():
    device = Device("sm8650")
    before = {node: device.temperature(node) for node in ("npu", "board", "skin", "battery")}
    advance(device, IDLE, 600)
    for node, celsius in before.items():
        assert device.temperature(node) == pytest.approx(celsius, abs=0.02)


def test_heat_ends_where_the_resistances_say():
    """Steady state: skin = ambient + P / G, each node above the next by its flow / conductance."""
    device = Device("sm8650")
    device._govern = lambda: None  # type: ignore[method-assign]
    advance(device, inference_load(MODEL), 6000)
    rails = device._rails_mw()
    watts = device._board_mw(rails) * 1e-3
    skin = device.personality.ambient_c + watts / c.SKIN_AIR_G
    assert device.temperature("skin") == pytest.approx(skin, abs=0.2)
    board = skin + watts / c.BOARD_SKIN_G
    assert device.temperature("board") == pytest.approx(board, abs=0.2)
    npu = board + rails[0] * 1e-3 / c.JUNCTION_G
    assert device.temperature("npu") == pytest.approx(npu, abs=0.2)


def test_the_junction_warms_in_seconds_and_the_skin_in_minutes():
    device = Device("sm8650")
    start = {node: device.temperature(node) for node in ("npu", "skin")}
    advance(device, inference_load(MODEL), 5)
    early = {node: device.temperature(node) - start[node] for node in start}
    advance(device, inference_load(MODEL), 55)
    assert early["npu"] > 3
    assert early["skin"] < 0.5
    assert device.temperature("skin") - start["skin"] > 4 * early["skin"]


def test_the_governor_slows_with_heat_and_recovers_with_hysteresis():
    device = Device("sm8650")
    heavy = inference_load({**MODEL, "activity": {**MODEL["activity"], "macs": 9e9}})
    levels = []
    for _ in range(900):
        advance(device, heavy, 1)
        levels.append(device.level)
    assert levels[0] == 0
    assert max(levels) >= 2
    changes = sum(a != b for a, b in itertools.pairwise(levels))
    assert changes < 12  # no flutter around a threshold
    advance(device, IDLE, 900)
    assert device.level == 0


def test_the_step_size_does_not_change_the_physics():
    coarse, fine = Device("sm8650"), Device("sm8650")
    coarse._govern = fine._govern = lambda: None  # type: ignore[method-assign]
    advance(coarse, inference_load(MODEL), 60)
    fine.load = inference_load(MODEL)
    for _ in range(6000):
        fine.advance(10_000_000)
    for node in ("npu", "board", "skin"):
        assert coarse.temperature(node) == pytest.approx(fine.temperature(node), abs=0.05)


# --- Latency -----------------------------------------------------------------------------------


def test_latency_noise_is_seeded_and_as_documented():
    first, again = (block_latencies(500.0, 50_000, rng=np.random.default_rng(3)) for _ in range(2))
    assert (first == again).all()
    assert np.median(first) == pytest.approx(500, rel=0.002)
    assert np.std(np.log(first[first < 550])) == pytest.approx(c.LATENCY_SIGMA, rel=0.1)
    assert np.mean(first > 550) == pytest.approx(c.PREEMPTION_SHARE, rel=0.3)


def test_two_agents_with_one_seed_agree_and_another_seed_differs(
    start_agent, artifact_files, block_segment, tmp_path
):
    def latencies(seed: int, name: str) -> list[float]:
        agent = start_agent("--seed", str(seed), root=tmp_path / name)
        artifact = agent.put(artifact_files)
        request = pb.StartRequest(session_id="s", segments=[block_segment(artifact)])
        first = agent.call("Start", request).first_seq
        (block,) = [b.block for b in agent.follow(first, 1) if b.HasField("block")]
        return list(block.per_iteration_us)

    assert latencies(1, "a") == latencies(1, "b") != latencies(2, "c")


# --- Files -------------------------------------------------------------------------------------


def test_the_sensors_read_what_the_device_knows(tmp_path):
    device = Device("sm8650")
    tree = SysfsTree(tmp_path, device)
    advance(device, inference_load(MODEL), 20)
    tree.publish()
    values = {}
    for channel in discover(tmp_path).channels:
        channel.open()
        values[channel.spec.name] = channel.read()
        channel.close()
    tree.close()
    for rail, reading in zip((*c.RAILS, c.BOARD_RAIL), device.rail_readings, strict=True):
        assert values[rail] == pytest.approx(reading, abs=0.001)
    assert values["nsphmx-0"] == pytest.approx(device.temperature("npu"), abs=0.001)
    assert values["skin-msm-therm"] == pytest.approx(device.temperature("skin"), abs=0.001)
    assert values["battery_current"] == pytest.approx(device.battery_ma, abs=0.001)
    assert values["battery_voltage"] == pytest.approx(device.battery_mv, abs=0.001)
    assert "modem-ss-0" not in values
    assert not any("lvl" in name for name in values)


@pytest.mark.parametrize("name", sorted(PERSONALITIES))
def test_every_personality_is_read_right_by_the_sensors(tmp_path, name):
    """Whatever unit, sign or quirk its files have: the same current, voltage and temperature."""
    device = Device("sm8650", personality=PERSONALITIES[name])
    tree = SysfsTree(tmp_path, device)
    advance(device, inference_load(MODEL), 60.5)
    tree.publish()
    channels = discover(tmp_path).channels
    values: dict[str, list] = {channel.spec.name: [] for channel in channels}
    for channel in channels:
        channel.open()
    for _ in range(4):
        for channel in channels:
            values[channel.spec.name].append(channel.read())
        device.advance(device.personality.gauge_period_ns)
        tree.publish()
    tree.close()
    currents = [value for value in values["battery_current"] if value is not None]
    assert currents[-1] == pytest.approx(device.battery_ma, rel=0.05, abs=1)
    assert (currents[-1] < 0) == device.personality.plugged
    assert (None in values["battery_current"]) == bool(device.personality.busy_every)
    battery = values["battery"][-1] if "battery" in values else device.temperature("battery")
    assert battery == pytest.approx(device.temperature("battery"), abs=0.6)
    assert ("vph_pwr" in values) == device.personality.rails


def test_no_reader_ever_sees_a_torn_or_empty_file(tmp_path):
    device = Device("sm8650")
    tree = SysfsTree(tmp_path, device)
    node = tmp_path / "sys/class/hwmon/hwmon0/power1_input"
    done, seen, bad = threading.Event(), set(), []

    def read() -> None:
        fd = os.open(node, os.O_RDONLY)
        while not done.is_set():
            text = os.pread(fd, 64, 0)
            if len(text) != 13 or not text.endswith(b"\n"):
                bad.append(text)
            seen.add(int(text))
        os.close(fd)

    reader = threading.Thread(target=read)
    reader.start()
    written = {9_000, 123_456_789}
    end = time.monotonic() + 20
    for i in itertools.count():
        device.rail_readings[0] = 9.0 if i % 2 else 123456.789
        tree.publish()
        if (i > 3000 and written <= seen) or time.monotonic() > end:
            break
    done.set()
    reader.join()
    tree.close()
    assert not bad
    assert written <= seen <= written | {round(c.IDLE_MW["vdd_npu"] * 1e3)}


def test_the_emulated_socs_are_those_of_the_hosts_table():
    table = tomllib.loads((Path(__file__).parents[2] / "quant/htp/soc.toml").read_text())
    for name, soc in SOCS.items():
        row = table[name]
        assert (soc.name, soc.soc_model, soc.htp_arch) == (
            row["name"], row["soc_model"], row["arch"],
        )  # fmt: skip
        assert list(soc.soc_ids) == row["soc_ids"]
        assert soc.skin_zone == row["skin_zone"]
        assert list(soc.npu_zones) == row["npu_zones"]
    assert set(SOCS) == set(table) - {"defaults", "refused"}


# --- Wall time ---------------------------------------------------------------------------------


def test_as_fast_as_possible_needs_a_fraction_of_device_time(
    start_agent, artifact_files, block_segment
):
    agent = start_agent()
    artifact = agent.put(artifact_files)
    segment = block_segment(
        artifact, min_duration_ns=60 * SECOND, max_duration_ns=90 * SECOND, min_inferences=1
    )
    first = agent.call("Start", pb.StartRequest(session_id="s", segments=[segment])).first_seq
    started = time.monotonic()
    (block,) = [b.block for b in agent.follow(first, 1) if b.HasField("block")]
    wall_s = time.monotonic() - started
    assert block.t_last_ns - block.t_first_ns >= 60 * SECOND
    assert wall_s < 30  # it would be 60 if anything slept


def test_with_a_time_factor_device_time_goes_with_the_wall(start_agent):
    agent = start_agent("--time-factor", "20")

    def clock() -> tuple[int, int]:
        return agent.call("Status", pb.StatusRequest()).clock_ns, time.monotonic_ns()

    device0, wall0 = clock()
    time.sleep(1.2)
    device1, wall1 = clock()
    assert (device1 - device0) / (wall1 - wall0) == pytest.approx(20, rel=0.2)


# --- Synthetic signals -------------------------------------------------------------------------

ALL = [Constant(), Steps(), Ramp(), Bursts()]


@pytest.mark.parametrize("signal", ALL, ids=lambda s: type(s).__name__)
def test_a_signals_energy_is_the_integral_of_its_power(signal):
    """The closed form against a fine sum of its own differences: additive, smooth, right mean."""
    latency_s = 0.004
    x = np.linspace(0, 7.3, 200_001)
    energy = np.array([signal.energy_mj(t, latency_s) for t in x])
    power = np.diff(energy) / np.diff(x)
    levels = {
        Constant: {3000.0}, Steps: {1000.0, 4000.0}, Bursts: {6000.0, 800.0},
    }.get(type(signal))  # fmt: skip
    if levels:
        plain = {round(p) for p in power if min(abs(p - level) for level in levels) < 1}
        assert plain == {round(level) for level in levels}
        assert np.mean([round(p) in plain for p in power]) > 0.95
    else:
        assert power[0] == pytest.approx(1000, abs=1)
        assert power[-1] == pytest.approx(4000, abs=1)
        assert (np.diff(power) > -0.01).all()
    mean = {
        "Constant": 3000.0, "Steps": 2500.0, "Ramp": (2500 * 5 + 4000 * 2.3) / 7.3,
        "Bursts": 0.3 * 6000 + 0.7 * 800,
    }[type(signal).__name__]  # fmt: skip
    assert energy[-1] / 7.3 == pytest.approx(mean, rel=0.02)


def test_a_trace_is_idle_between_its_stretches():
    trace = SignalTrace(Constant(500, 3000), 0)
    trace.begin(SECOND, 0.001)
    trace.end(3 * SECOND)
    assert trace.mean_mw(0, SECOND) == pytest.approx(500)
    assert trace.mean_mw(SECOND, 3 * SECOND) == pytest.approx(3500)
    assert trace.mean_mw(2 * SECOND, 4 * SECOND) == pytest.approx(2000)


def test_signal_syntax():
    assert parse_signal("steps:low_mw=10,period_s=2") == Steps(low_mw=10, period_s=2)
    assert parse_signal("ramp") == Ramp()
    for wrong in ("sine", "steps:depth=1", "steps:low_mw", "steps:low_mw=x"):
        with pytest.raises(ValueError, match=r"sine|steps"):
            parse_signal(wrong)
    assert set(SIGNALS) == {"constant", "steps", "ramp", "bursts"}


@pytest.mark.parametrize(("board", "rate_hz"), [("board", 100.0), ("board-1khz", 1000.0)])
@pytest.mark.parametrize("name", sorted(SIGNALS))
def test_net_energy_of_a_signal_seen_through_files_and_the_wire(
    start_agent, artifact_files, block_segment, name, board, rate_hz
):
    """What the host integrates from the samples is the energy that went in, within 2 %."""
    agent = start_agent("--signal", name, "--personality", board)
    artifact = agent.put(artifact_files)
    segment = block_segment(
        artifact, min_duration_ns=6 * SECOND, max_duration_ns=60 * SECOND, idle_ns=SECOND,
        warmup_ns=0, sample_rate_hz=rate_hz,
    )  # fmt: skip
    first = agent.call("Start", pb.StartRequest(session_id="s", segments=[segment])).first_seq
    batches = agent.follow(first, 1)
    (block,) = [b.block for b in batches if b.HasField("block")]
    channels = agent.call("Describe", pb.DescribeRequest(protocol_version=1)).channels
    rail = next(ch.id for ch in channels if ch.name == c.BOARD_RAIL)
    parts = [s for b in batches for s in b.samples if s.channel == rail]
    t = np.concatenate([s.t_ns for s in parts])
    mw = np.concatenate([s.value for s in parts])
    inside = (t >= block.t_first_ns) & (t <= block.t_last_ns)
    seconds = (block.t_last_ns - block.t_first_ns) * 1e-9
    net_mj = (np.mean(mw[inside]) - mw[t < block.t_first_ns][5:].mean()) * seconds
    latency_s = json.loads(artifact_files["manifest.json"])["device_model"]["sm8650"][
        "latency_us"]["total"] * 1e-6  # fmt: skip
    assert block.inferences == math.ceil(6 / latency_s - 1e-9)
    assert net_mj == pytest.approx(SIGNALS[name]().energy_mj(seconds, latency_s), rel=0.02)


def test_a_python_behind_a_link_is_offered_with_what_the_link_leads_to(tmp_path, monkeypatch):
    real, link = tmp_path / "venv", tmp_path / "linked"
    real.mkdir()
    link.symlink_to(real)
    monkeypatch.setattr(sys, "prefix", str(link))
    assert {link, real} <= set(host_programs())
