"""The protocol of a run: cooldown gate, steady warm-up, thermal ceiling, charging."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from agent.charging import Charger, Way, restore_from, ways
from agent.errors import DeviceFailure
from protos import agent_pb2 as pb

_sessions = itertools.count()

SECOND = 1_000_000_000
HOT = {"macs": 6e9, "ddr_bytes": 2e7}  # a model that heats the device within minutes


def until(condition, seconds: float = 15.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)
    return value


def run(agent, *segments, session=""):
    session = session or f"s{next(_sessions)}"
    first = agent.call("Start", pb.StartRequest(session_id=session, segments=segments)).first_seq
    return agent.follow(first, len(segments))


def one(batches, field):
    (found,) = [getattr(b, field) for b in batches if b.HasField(field)]
    return found


def phases(batches):
    return [mark.phase for b in batches for mark in b.marks]


@pytest.fixture
def hot_artifact(artifact_files):
    manifest = json.loads(artifact_files["manifest.json"])
    manifest["device_model"]["sm8650"]["activity"] |= HOT
    return {**artifact_files, "manifest.json": json.dumps(manifest).encode()}


# --- Cooldown ----------------------------------------------------------------------------------


def gate(above_c: float, timeout_s: float, *sites: str) -> pb.CooldownGate:
    return pb.CooldownGate(
        sites=sites or ("npu",), above_start_c=above_c, timeout_ns=round(timeout_s * SECOND)
    )


def test_the_gate_waits_until_the_zones_are_as_cool_as_at_the_start(
    start_agent, hot_artifact, block_segment
):
    agent = start_agent()
    artifact = agent.put(hot_artifact)
    heat = block_segment(artifact, idle_ns=0, min_duration_ns=60 * SECOND)
    heat.block_index = 1
    first_gated, gated = (
        block_segment(artifact, block_index=i, cooldown=gate(2.0, 600)) for i in (0, 2)
    )
    batches = run(agent, first_gated, heat, gated)
    first, second = (b.cooldown for b in batches if b.HasField("cooldown"))
    assert (first.waited_ns, first.timed_out) == (0, False)
    assert second.waited_ns > SECOND
    assert not second.timed_out
    assert second.block_index == 2
    last = batches[-1].end
    assert last.outcome == pb.OK
    cooldown = [m for b in batches for m in b.marks if m.phase == pb.COOLDOWN][1]
    assert cooldown.t_end_ns - cooldown.t_start_ns == second.waited_ns
    zones = {
        c.id for c in agent.call("Describe", pb.DescribeRequest(protocol_version=1)).channels
        if c.kind == pb.TEMPERATURE and c.site == "npu"
    }  # fmt: skip
    start = {s.channel: s.value[0] for b in batches[:3] for s in b.samples if s.channel in zones}
    after = [
        (s.channel, s.value[np.searchsorted(s.t_ns, cooldown.t_end_ns)])
        for b in batches for s in b.samples
        if s.channel in zones and s.t_ns[0] <= cooldown.t_end_ns <= s.t_ns[-1]
    ]  # fmt: skip
    assert after
    assert all(value <= start[channel] + 2.0 + 1e-6 for channel, value in after)


def test_a_gate_that_gives_up_says_so_and_the_block_runs_all_the_same(
    start_agent, hot_artifact, block_segment
):
    agent = start_agent()
    artifact = agent.put(hot_artifact)
    heat = block_segment(artifact, idle_ns=0, min_duration_ns=100 * SECOND)
    heat.max_duration_ns = 200 * SECOND
    gated = block_segment(artifact, cooldown=gate(0.5, 3, "skin"))
    batches = run(agent, heat, gated)
    result = one(batches, "cooldown")
    assert result.timed_out
    assert 3 * SECOND <= result.waited_ns < 4 * SECOND
    assert "skin-msm-therm" in result.message
    assert "0.5 C allowed" in result.message
    assert batches[-1].end.outcome == pb.OK
    assert sum(b.HasField("block") for b in batches) == 2


def test_every_session_has_a_start_of_its_own(start_agent, hot_artifact, block_segment):
    agent = start_agent()
    artifact = agent.put(hot_artifact)
    heat = block_segment(artifact, idle_ns=0, min_duration_ns=100 * SECOND)
    heat.max_duration_ns = 200 * SECOND
    gated = block_segment(artifact, cooldown=gate(1.0, 1, "skin"))
    assert one(run(agent, heat, gated, session="a"), "cooldown").timed_out
    assert not one(run(agent, gated, session="b"), "cooldown").timed_out


def test_a_gate_on_a_site_without_zones_fails_instead_of_seeing_nothing(
    agent, artifact, block_segment
):
    batches = run(agent, block_segment(artifact, cooldown=gate(1.0, 1, "lens")))
    end = batches[-1].end
    assert (end.outcome, end.failure_class) == (pb.FAILED, "DEVICE_ERROR")
    assert "lens" in end.message


# --- Warm-up and ceiling -----------------------------------------------------------------------


def test_warm_up_ends_when_two_pieces_are_alike(agent, artifact, block_segment):
    plain = block_segment(artifact)
    steady = block_segment(artifact, warmup_max_ns=30 * SECOND)
    lengths = []
    for segment in (plain, steady):
        (mark,) = [m for b in run(agent, segment) for m in b.marks if m.phase == pb.WARMUP]
        lengths.append(mark.t_end_ns - mark.t_start_ns)
    piece = plain.warmup_ns
    assert piece <= lengths[0] < 1.1 * piece
    assert 2 * piece <= lengths[1] < 10 * piece


def test_a_thermal_ceiling_ends_the_segment(start_agent, hot_artifact, block_segment):
    agent = start_agent()
    artifact = agent.put(hot_artifact)
    segment = block_segment(
        artifact, min_duration_ns=600 * SECOND, max_duration_ns=600 * SECOND,
        ceilings=[pb.Ceiling(site="skin", celsius=35.0)],
    )  # fmt: skip
    batches = run(agent, segment, block_segment(artifact, run_id="next"))
    ends = [b.end for b in batches if b.HasField("end")]
    assert (ends[0].outcome, ends[0].failure_class) == (pb.FAILED, "DEVICE_ERROR")
    assert "ceiling of skin is 35 C" in ends[0].message
    assert ends[1].outcome == pb.OK
    skin = next(
        c.id for c in agent.call("Describe", pb.DescribeRequest(protocol_version=1)).channels
        if c.site == "skin"
    )  # fmt: skip
    hottest = max(
        v for b in batches if b.run_id == "run" for s in b.samples if s.channel == skin
        for v in s.value
    )  # fmt: skip
    assert 34.5 < hottest < 35.5


# --- Charging ----------------------------------------------------------------------------------


def suspend_node(agent) -> Path:
    return agent.root / "sysroot/sys/class/power_supply/battery/input_suspend"


def is_cut(agent) -> bool:
    return suspend_node(agent).read_text().startswith("1")


def plugged(start_agent, artifact_files, *flags):
    agent = start_agent("--personality", "phone-plugged", *flags)
    return agent, agent.put(artifact_files)


def test_a_charging_battery_fails_a_run_that_needs_it_to_discharge(
    start_agent, artifact_files, block_segment
):
    agent, artifact = plugged(start_agent, artifact_files)
    demand = block_segment(artifact, charging=pb.REQUIRE_DISCHARGING)
    ends = [b.end for b in run(agent, demand, block_segment(artifact)) if b.HasField("end")]
    assert (ends[0].outcome, ends[0].failure_class) == (pb.FAILED, "DEVICE_ERROR")
    assert "Charging" in ends[0].message
    assert ends[1].outcome == pb.OK  # without the demand the state is recorded, nothing more


def test_the_state_of_charging_is_in_the_samples(start_agent, artifact_files, block_segment):
    agent, artifact = plugged(start_agent, artifact_files)
    channels = agent.call("Describe", pb.DescribeRequest(protocol_version=1)).channels
    ids = {c.name: c.id for c in channels}
    values: dict[int, set] = {}
    for batch in run(agent, block_segment(artifact)):
        for s in batch.samples:
            values.setdefault(s.channel, set()).update(s.value)
    assert values[ids["battery_status"]] == {1.0}
    assert max(values[ids["battery_current"]]) < 0  # into the battery


def test_stop_charging_cuts_the_input_and_gives_it_back_when_all_is_cancelled(
    start_agent, artifact_files, block_segment
):
    agent, artifact = plugged(start_agent, artifact_files)
    batches = run(agent, block_segment(artifact, charging=pb.STOP_CHARGING))
    assert batches[-1].end.outcome == pb.OK, batches[-1].end.message
    assert is_cut(agent)  # another Start of the session may come
    agent.call("Cancel", pb.CancelRequest())
    until(lambda: not is_cut(agent))


@pytest.mark.parametrize("death", ["SIGKILL of the agent", "SIGTERM", "death of the host"])
def test_charging_comes_back_however_the_agent_ends(
    start_agent, artifact_files, block_segment, death
):
    agent, artifact = plugged(start_agent, artifact_files, "--time-factor", "1")
    segment = block_segment(
        artifact, charging=pb.STOP_CHARGING, min_duration_ns=60 * SECOND,
        max_duration_ns=60 * SECOND,
    )  # fmt: skip
    agent.call("Start", pb.StartRequest(session_id="s", segments=[segment]))
    until(lambda: is_cut(agent))
    until(lambda: (agent.root / "charger.json").exists())
    if death == "SIGKILL of the agent":
        agent.process.kill()
    elif death == "SIGTERM":
        agent.process.terminate()
    else:
        agent.process.stdin.close()  # what --die-with-parent sees of a killed host
    agent.process.wait(15)
    until(lambda: not is_cut(agent))
    until(lambda: not (agent.root / "charger.json").exists())


def test_a_cut_connection_leaves_the_run_and_the_charger_to_the_agent(
    start_agent, artifact_files, block_segment, monkeypatch
):
    """The host goes away without a word: the queue is worked through, then charging comes back."""
    agent = start_agent(
        "--personality", "phone-plugged", "--time-factor", "1", "--charger-grace-s", "0.5"
    )
    artifact = agent.put(artifact_files)
    segment = block_segment(artifact, charging=pb.STOP_CHARGING)
    agent.call("Start", pb.StartRequest(session_id="s", segments=[segment]))
    agent.channel.close()
    until(lambda: is_cut(agent))
    until(lambda: not is_cut(agent))
    agent.channel = grpc.insecure_channel(agent.ready["address"])
    agent.stub = type(agent.stub)(agent.channel)
    assert agent.follow(1, 1)[-1].end.outcome == pb.OK


def supply(root: Path, status: str, **nodes: str) -> Path:
    base = root / "sys/class/power_supply/battery"
    base.mkdir(parents=True)
    for name, text in {"status": status, **nodes}.items():
        (base / name).write_text(text + "\n")
    return base


def guard_of(charger: Charger) -> int:
    assert charger._guard is not None
    return charger._guard.pid


def test_a_killed_guard_is_made_good_by_the_agent(tmp_path):
    base = supply(tmp_path, "Charging", input_suspend="0", capacity="80")
    charger = Charger(tmp_path, tmp_path / "note")
    charger.stop(lambda: (base / "status").write_text("Discharging\n"))
    assert (base / "input_suspend").read_text().startswith("1")
    os.kill(guard_of(charger), 9)
    charger.restore()
    assert (base / "input_suspend").read_text().startswith("0")
    assert not (tmp_path / "note").exists()


def test_the_next_agent_restores_what_a_reboot_left_cut(tmp_path):
    base = supply(tmp_path, "Discharging", charging_enabled="0", capacity="80")
    way = {"node": str(base / "charging_enabled"), "cut": "0", "restore": "1"}
    (tmp_path / "note").write_text(json.dumps(way))
    Charger(tmp_path, tmp_path / "note")
    assert (base / "charging_enabled").read_text().startswith("1")
    assert not (tmp_path / "note").exists()


def test_a_switch_without_effect_is_restored_and_the_next_is_tried(tmp_path):
    base = supply(tmp_path, "Charging", input_suspend="0", charging_enabled="1", capacity="80")

    def settle():
        if (base / "charging_enabled").read_text().startswith("0"):
            (base / "status").write_text("Discharging\n")
        time.sleep(0.02)

    charger = Charger(tmp_path, tmp_path / "note", settle_s=0.3)
    charger.stop(settle)
    assert (base / "input_suspend").read_text().startswith("0")
    assert (base / "charging_enabled").read_text().startswith("0")
    charger.restore()
    assert (base / "charging_enabled").read_text().startswith("1")


def test_a_device_that_cannot_stop_charging_says_what_was_tried(tmp_path):
    base = supply(tmp_path, "Charging", input_suspend="0", capacity="80")
    charger = Charger(tmp_path, tmp_path / "note", settle_s=0.2)
    with pytest.raises(DeviceFailure, match="input_suspend had no effect"):
        charger.stop(lambda: time.sleep(0.02))
    assert (base / "input_suspend").read_text().startswith("0")
    assert not (tmp_path / "note").exists()


def test_an_almost_empty_battery_is_not_drained_further(tmp_path):
    base = supply(tmp_path, "Charging", input_suspend="0", capacity="7")
    with pytest.raises(DeviceFailure, match="7 %"):
        Charger(tmp_path, tmp_path / "note").stop(lambda: None)
    assert (base / "input_suspend").read_text().startswith("0")


def test_dumpsys_is_a_way_only_where_it_answers(tmp_path):
    assert ways(tmp_path, lambda argv: None) == []
    assert ways(tmp_path, lambda argv: "Current Battery Service state:") == [
        Way(cut="suspend", restore="reset")
    ]


def test_a_note_that_makes_no_sense_is_removed(tmp_path):
    note = tmp_path / "note"
    note.write_text("{")
    restore_from(note)
    assert not note.exists()
