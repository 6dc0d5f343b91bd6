"""Segments through a real agent process: what a host sees of a CHECK and of a BLOCK."""

from __future__ import annotations

import itertools
import json
import math

import grpc
import numpy as np
import pytest

from protos import agent_pb2 as pb

_sessions = itertools.count()

MINUTE = 60_000_000_000


def marks_of(batches) -> list[pb.Mark]:
    return [mark for batch in batches for mark in batch.marks]


def series(batches, channel: int) -> tuple[np.ndarray, np.ndarray]:
    parts = [s for b in batches for s in b.samples if s.channel == channel]
    times = np.array([t for s in parts for t in s.t_ns])
    return times, np.array([v for s in parts for v in s.value])


def run(agent, *segments, session=""):
    session = session or f"s{next(_sessions)}"
    first = agent.call("Start", pb.StartRequest(session_id=session, segments=segments)).first_seq
    return agent.follow(first, len(segments))


def channel(agent, name: str) -> pb.Channel:
    description = agent.call("Describe", pb.DescribeRequest(protocol_version=1))
    return next(c for c in description.channels if c.name == name)


def test_check_reports_loads_and_bit_equal_goldens(agent, artifact, check_segment, device_model):
    batches = run(agent, check_segment(artifact, run_id="r1"), session="s-check")
    assert [b.seq for b in batches] == list(range(batches[0].seq, batches[0].seq + len(batches)))
    assert {(b.session_id, b.run_id) for b in batches} == {("s-check", "r1")}
    load = next(b.load for b in batches if b.HasField("load"))
    assert load.cold_s == pytest.approx(device_model["load_s"]["cold"], rel=0.1)
    assert load.warm_s == pytest.approx(device_model["load_s"]["warm"], rel=0.1)
    assert load.first_inference_s > device_model["latency_us"]["total"] * 1e-6
    assert load.peak_memory_bytes == device_model["memory_bytes"]
    golden = next(b.golden for b in batches if b.HasField("golden"))
    assert (golden.samples, golden.bit_equal, golden.sqnr_db) == (2, True, math.inf)
    assert [m.phase for m in marks_of(batches)] == [
        pb.COLD_LOAD, pb.FIRST_INFERENCE, pb.WARM_LOAD, pb.GOLDEN,
    ]  # fmt: skip
    assert batches[-1].end.outcome == pb.OK


def test_block_has_contiguous_phases_samples_in_all_of_them_and_latencies(
    agent, artifact, block_segment, device_model
):
    batches = run(agent, block_segment(artifact, block_index=3))
    marks = marks_of(batches)
    assert [m.phase for m in marks] == [pb.IDLE_BEFORE, pb.WARMUP, pb.TIMED, pb.IDLE_AFTER]
    assert all(a.t_end_ns == b.t_start_ns for a, b in itertools.pairwise(marks))
    assert {m.block_index for m in marks} == {3}
    block = next(b.block for b in batches if b.HasField("block"))
    assert block.block_index == 3
    assert len(block.per_iteration_us) == block.inferences
    span_us = (block.t_last_ns - block.t_first_ns) / 1e3
    assert span_us >= 1e6
    assert sum(block.per_iteration_us) == pytest.approx(span_us, rel=1e-3)
    assert np.median(block.per_iteration_us) == pytest.approx(
        device_model["latency_us"]["total"], rel=0.03
    )
    assert not block.throttled
    rail = channel(agent, "vdd_npu")
    times, power = series(batches, rail.id)
    steps = np.diff(times)[:-1]  # the last reading is taken at the very end
    assert steps.min() == steps.max() == 10_000_000
    for c in agent.call("Describe", pb.DescribeRequest(protocol_version=1)).channels:
        inside = series(batches, c.id)[0]
        assert inside[0] <= marks[0].t_start_ns, c.name
        assert inside[-1] >= marks[-1].t_end_ns, c.name
    report = next(b.sampler for b in batches if b.HasField("sampler"))
    assert report.ticks == len(times) - 1
    rates = {r.channel: r.update_rate_hz for r in report.channels}
    assert rates[rail.id] == pytest.approx(100, rel=0.1)
    assert rates[channel(agent, "battery_current").id] < 2
    idle = power[(times > marks[0].t_start_ns + 20_000_000) & (times < marks[0].t_end_ns)]
    timed = power[(times > marks[2].t_start_ns + 20_000_000) & (times < marks[2].t_end_ns)]
    assert idle.max() < 20 < 500 < timed.min()


def test_interleaved_runs_come_in_the_order_of_their_segments(agent, artifact, block_segment):
    order = [("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    batches = run(
        agent,
        *(block_segment(artifact, run_id=r, block_index=i, idle_ns=0) for r, i in order),
    )
    assert [(b.run_id, b.end.block_index) for b in batches if b.HasField("end")] == order


def test_sample_columns_are_equally_long_and_cover_every_described_channel(
    agent, artifact, block_segment
):
    description = agent.call("Describe", pb.DescribeRequest(protocol_version=1))
    batches = run(agent, block_segment(artifact))
    columns = [s for b in batches for s in b.samples]
    assert all(len(s.t_ns) == len(s.value) for s in columns)
    assert {s.channel for s in columns} == {c.id for c in description.channels}


def test_a_block_that_cannot_finish_in_time_fails_as_timeout(agent, artifact, block_segment):
    batches = run(
        agent,
        block_segment(
            artifact, min_inferences=100_000, min_duration_ns=0, max_duration_ns=10_000_000
        ),
    )
    end = batches[-1].end
    assert (end.outcome, end.failure_class) == (pb.FAILED, "TIMEOUT")
    assert "100000" in end.message
    assert not any(b.HasField("block") for b in batches)


def test_a_damaged_context_fails_and_the_next_segment_runs(
    agent, artifact, artifact_files, check_segment
):
    name = "contexts/sm8650/context.bin"
    files = {**artifact_files, name: bytes(len(artifact_files[name]))}
    bad = agent.put(files)
    first, second = (run(agent, check_segment(a))[-1].end for a in (bad, artifact))
    assert (first.outcome, first.failure_class) == (pb.FAILED, "USER_ERROR")
    assert second.outcome == pb.OK


def test_a_context_whose_sha256_is_not_the_manifests_is_never_loaded(
    agent, artifact_files, check_segment
):
    name = "contexts/sm8650/context.bin"
    manifest = json.loads(artifact_files["manifest.json"])
    manifest["members"] = {name: {"sha256": "0" * 64}}
    sha = agent.put({**artifact_files, "manifest.json": json.dumps(manifest).encode()})
    end = run(agent, check_segment(sha))[-1].end
    assert end.failure_class == "USER_ERROR"
    assert "damaged" in end.message


def test_wrong_goldens_are_reported_with_their_distance(
    agent, artifact_files, check_segment, tmp_path
):
    name = "golden/sm8650/0.npz"
    path = tmp_path / "golden.npz"
    path.write_bytes(artifact_files[name])
    arrays = dict(np.load(path))
    arrays["output/y"] = arrays["output/y"] * np.float32(1.1)
    np.savez(path, **arrays)
    sha = agent.put({**artifact_files, name: path.read_bytes()})
    golden = next(b.golden for b in run(agent, check_segment(sha)) if b.HasField("golden"))
    assert not golden.bit_equal
    assert 15 < golden.sqnr_db < 30


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"soc": "sm8550"}, "sm8550"),
        ({"kind": 0}, "kind"),
        ({"min_inferences": 0}, "min_inferences"),
        ({"max_duration_ns": 0}, "max_duration_ns"),
        ({"idle_ns": -1}, "duration"),
        ({"sample_rate_hz": 5000.0}, "sample_rate_hz"),
        ({"run_id": ""}, "run_id"),
        ({"artifact": "../../etc"}, "hex"),
    ],
)
def test_start_refuses_nonsense_and_queues_nothing(agent, artifact, block_segment, change, words):
    good, bad = block_segment(artifact), block_segment(artifact)
    for name, value in change.items():
        setattr(bad, name, value)
    before = agent.call("Status", pb.StatusRequest())
    with pytest.raises(grpc.RpcError) as refused:
        agent.call("Start", pb.StartRequest(session_id="s", segments=[good, bad]))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in refused.value.details()
    assert "segment 1" in refused.value.details()
    after = agent.call("Status", pb.StatusRequest())
    assert (after.next_seq, after.queued_segments) == (before.next_seq, 0)


def test_a_start_that_is_repeated_for_want_of_an_answer_runs_nothing_twice(
    start_agent, artifact_files, block_segment
):
    agent = start_agent("--time-factor", "4")
    artifact = agent.put(artifact_files)
    segments = [block_segment(artifact, block_index=i, idle_ns=0) for i in range(3)]
    request = pb.StartRequest(session_id="s", segments=segments)
    first = agent.call("Start", request).first_seq
    agent.call("Start", request)  # all queued or under way
    seen = agent.follow(first, 2)
    agent.call("Start", request)  # two have ended and are not acknowledged
    seen += agent.follow(seen[-1].seq + 1, 1)
    assert [b.end.block_index for b in seen if b.HasField("end")] == [0, 1, 2]
    assert agent.call("Status", pb.StatusRequest()).queued_segments == 0
    agent.call("Ack", pb.AckRequest(seq=seen[-1].seq))
    again = agent.call("Start", request).first_seq  # the host means it
    assert sum(b.HasField("block") for b in agent.follow(again, 3)) == 3


def test_start_names_an_artifact_that_is_not_here(agent, check_segment):
    with pytest.raises(grpc.RpcError) as refused:
        agent.call("Start", pb.StartRequest(session_id="s", segments=[check_segment("ab" * 32)]))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_cancel_ends_the_running_segment_and_drops_the_queued(
    start_agent, artifact_files, block_segment
):
    agent = start_agent("--time-factor", "1")
    artifact = agent.put(artifact_files)
    long, queued = (
        block_segment(artifact, min_duration_ns=MINUTE, max_duration_ns=10 * MINUTE, block_index=i)
        for i in range(2)
    )
    other = block_segment(artifact, run_id="other", idle_ns=0, min_duration_ns=0, warmup_ns=0)
    first = agent.call(
        "Start", pb.StartRequest(session_id="s", segments=[long, queued, other])
    ).first_seq
    agent.follow(first, 0)  # until something is written: the first segment runs
    assert agent.call("Cancel", pb.CancelRequest(run_id="run")).cancelled == 2
    ends = [(b.run_id, b.end.outcome) for b in agent.follow(first, 3) if b.HasField("end")]
    assert sorted(ends) == [("other", pb.OK), ("run", pb.CANCELLED), ("run", pb.CANCELLED)]


def test_long_load_throttles_and_latency_follows(agent, artifact_files, block_segment):
    manifest = json.loads(artifact_files["manifest.json"])
    manifest["device_model"]["sm8650"]["activity"] |= {"macs": 6e9, "ddr_bytes": 2e7}
    artifact = agent.put({**artifact_files, "manifest.json": json.dumps(manifest).encode()})
    batches = run(
        agent,
        block_segment(
            artifact, min_inferences=1, min_duration_ns=10 * MINUTE, max_duration_ns=10 * MINUTE,
            sample_rate_hz=10.0, perf_profile="burst",
        ),
    )  # fmt: skip
    block = next(b.block for b in batches if b.HasField("block"))
    assert block.throttled
    latencies = np.array(block.per_iteration_us)
    assert np.median(latencies[-1000:]) > 1.1 * np.median(latencies[:1000])
    _, skin = series(batches, channel(agent, "skin-msm-therm").id)
    assert skin[0] < 32 < 40 <= skin.max()


def test_the_artifacts_profile_holds_unless_the_segment_names_one(
    start_agent, artifact_files, block_segment, device_model
):
    agent = start_agent()
    manifest = json.loads(artifact_files["manifest.json"])
    manifest["run_settings"] = {"perf_profile": "power_saver", "rpc_control_latency_us": 100}
    sha = agent.put({**artifact_files, "manifest.json": json.dumps(manifest).encode()})
    medians = []
    for profile in ("", "burst"):
        batches = run(agent, block_segment(sha, perf_profile=profile))
        (block,) = [b.block for b in batches if b.HasField("block")]
        medians.append(np.median(block.per_iteration_us))
    assert medians[1] == pytest.approx(device_model["latency_us"]["total"], rel=0.03)
    assert medians[0] > 1.3 * medians[1]


def test_an_unknown_profile_fails_and_names_the_known(agent, artifact, block_segment):
    end = run(agent, block_segment(artifact, perf_profile="turbo"))[-1].end
    assert (end.outcome, end.failure_class) == (pb.FAILED, "USER_ERROR")
    assert "sustained_high_performance" in end.message


def test_the_memory_pass_reads_the_process_that_runs_the_model(
    agent, artifact, block_segment, device_model
):
    segment = block_segment(artifact, min_duration_ns=1_000_000_000)
    segment.kind = pb.FOOTPRINT
    batches = run(agent, segment)
    assert batches[-1].end.outcome == pb.OK
    (memory,) = [b.memory for b in batches if b.HasField("memory")]
    want = device_model["memory_bytes"]
    assert memory.peak_bytes == pytest.approx(want, abs=1024)  # smaps_rollup counts kB
    assert memory.steady_bytes == pytest.approx(want, abs=1024)
    assert memory.readings >= 2 and memory.dma_buffer_bytes == 0
    assert not any(b.samples or b.HasField("block") for b in batches), "nothing is timed"


def test_an_emulated_device_has_no_per_operator_times(agent, artifact, block_segment):
    segment = block_segment(artifact)
    segment.kind = pb.PROFILE
    batches = run(agent, segment)
    assert batches[-1].end.failure_class == "DEVICE_ERROR"
    assert "emulated device" in batches[-1].end.message
    assert not any(b.HasField("profile") for b in batches)
