"""The committed protocol code is what agent.proto generates."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from host import client
from host.errors import ExitCode, FailureClass, RunStatus
from host.store.rows import Memory, OpProfile, Profile
from protos import agent_pb2 as pb
from quant.figures import METRICS, Provenance

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["agent_pb2.py", "agent_pb2.pyi", "agent_pb2_grpc.py"])
def test_generated_code_is_current(tmp_path, name):
    runpy.run_path(str(ROOT / "tools" / "generate_protos.py"))["generate"](tmp_path)
    assert (tmp_path / "protos" / name).read_text() == (ROOT / "protos" / name).read_text()


def test_decoding_keeps_every_part_of_a_batch():
    batch = pb.Batch(
        seq=3,
        session_id="s",
        run_id="r",
        samples=[pb.Samples(channel=2, t_ns=[1, 2], value=[0.5, -0.5])],
        marks=[pb.Mark(phase=pb.IDLE_BEFORE, t_start_ns=1, t_end_ns=2, block_index=4)],
        load=pb.LoadResult(cold_s=1, warm_s=2, first_inference_s=3, peak_memory_bytes=4),
        golden=pb.GoldenResult(samples=2, bit_equal=True, sqnr_db=float("inf")),
        block=pb.BlockResult(block_index=4, inferences=2, per_iteration_us=[10, 20]),
        memory=pb.MemoryResult(peak_bytes=9, steady_bytes=7, dma_buffer_bytes=2, readings=3),
        profile=pb.ProfileResult(
            ops=[pb.OpProfile(name="conv", op_id=5, cycles=[10, 12])], execute_us=[3, 4], file="f"
        ),
        end=pb.SegmentEnd(kind=pb.BLOCK, block_index=4, outcome=pb.FAILED, message="m"),
    )
    got = client.decode(batch)
    assert got.raw.samples[0].value.tolist() == [0.5, -0.5]
    assert got.raw.marks[0].phase == "idle_before"
    assert got.raw.load is not None and got.raw.load.warm_s == 2
    assert got.raw.golden is not None and got.raw.golden.sqnr_db == float("inf")
    assert got.raw.block is not None and got.raw.block.per_iteration_us.tolist() == [10, 20]
    assert got.raw.memory == Memory(9, 7, 2, 3)
    assert got.raw.profile == Profile((3, 4), "f")
    assert got.raw.ops == (OpProfile(5, "conv", (10, 12)),)
    assert got.end is not None and (got.end.kind, got.end.outcome) == ("block", "failed")
    bare = client.decode(pb.Batch(seq=1))
    assert (bare.raw.load, bare.raw.block, bare.end) == (None, None, None)


def test_names_that_everything_else_relies_on():
    assert [p.value for p in Provenance] == [
        "measured", "htp_emulator", "ort_cpu", "compiler", "predicted", "emulated_device", "file",
    ]  # fmt: skip
    assert [s.value for s in RunStatus] == ["ok", "failed", "skipped", "invalid"]
    assert {f.value for f in FailureClass} == {
        "USER_ERROR", "DEVICE_ERROR", "HARNESS_ERROR", "TIMEOUT", "KILLED",
    }  # fmt: skip
    assert sorted(ExitCode) == [0, 1, 2, 3, 4, 5, 70, 130]
    assert {
        "accuracy", "sqnr_db", "device_sqnr_db", "agreement",
        "latency_ms", "latency_min_ms", "latency_p90_ms",
        "latency_p99_ms", "throughput_items_per_sec", "power_mw", "energy_mj", "energy_gross_mj",
        "model_size_bytes", "artifact_bytes", "download_bytes", "memory_mb", "startup_ms",
        "startup_warm_ms", "first_inference_ms", "ddr_read_bytes", "ddr_write_bytes",
        "spill_bytes", "fill_bytes", "max_temperature_c",
    } <= set(METRICS)  # fmt: skip
