"""Traces of a run as tables and Perfetto files. Pure: rows in, bytes or Arrow tables out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from host.errors import unknown_name
from host.report.files import write_whole
from host.stats.power import measured_updates
from host.store.rows import Channel, Floats, OpProfile, RunData, RunRow

SPARKS = "▁▂▃▄▅▆▇█"


def trace_table(run: RunRow, data: RunData, provenance: str) -> pa.Table:
    """One row per sample: run, device, provenance, the channel and what it is, t_ns, value.

    t_ns is on the device's monotonic clock.
    """
    parts = []
    for channel in data.channels:
        samples = data.samples.get(channel.channel)
        if samples is None:
            continue
        n = len(samples.t_ns)
        constant = {
            "run_id": run.run_id,
            "variant": run.variant,
            "device": run.device,
            "provenance": provenance,
            "channel": channel.name,
            "site": channel.site,
            "kind": channel.kind,
            "unit": channel.unit,
            "method": channel.method,
        }
        columns = {k: pa.repeat(pa.scalar(v, pa.string()), n) for k, v in constant.items()}
        parts.append(pa.table({**columns, "t_ns": samples.t_ns, "value": samples.value}))
    if parts:
        return pa.concat_tables(parts)
    return pa.table({"run_id": pa.array([], pa.string()), "t_ns": [], "value": []})


def perfetto_trace(run: RunRow, data: RunData, provenance: str) -> bytes:
    """A Perfetto trace: one counter track per channel, one slice per phase and timed block.

    Opens in ui.perfetto.dev and trace_processor. Times are the device's monotonic clock. The
    process is named after the run and says when its figures are emulated.
    """
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (
        BUILTIN_CLOCK_MONOTONIC,
        TrackEvent,
    )
    from perfetto.trace_builder.proto_builder import TraceProtoBuilder

    builder = TraceProtoBuilder()
    process, phases, first_counter = 1, 2, 10
    # Without this trace_processor knows no way from the events' clock to its own, and drops them.
    snapshot = builder.add_packet().clock_snapshot
    snapshot.primary_trace_clock = BUILTIN_CLOCK_MONOTONIC
    clock = snapshot.clocks.add()
    clock.clock_id = BUILTIN_CLOCK_MONOTONIC
    clock.timestamp = min(
        (m.t_start_ns for m in data.marks),
        default=min((int(s.t_ns[0]) for s in data.samples.values() if len(s.t_ns)), default=0),
    )
    root = builder.add_packet().track_descriptor
    root.uuid = process
    root.process.pid = 1
    root.process.process_name = f"qhost {run.variant} on {run.device} [{provenance}]"
    track = builder.add_packet().track_descriptor
    track.uuid, track.parent_uuid, track.name = phases, process, "phases"

    def event(t_ns: int, kind: int, uuid: int) -> TrackEvent:
        packet = builder.add_packet()
        packet.timestamp = t_ns
        packet.timestamp_clock_id = BUILTIN_CLOCK_MONOTONIC
        packet.trusted_packet_sequence_id = 1
        packet.track_event.type = kind
        packet.track_event.track_uuid = uuid
        return packet.track_event

    for mark in sorted(data.marks, key=lambda m: (m.t_start_ns, -m.t_end_ns)):
        name = f"{mark.phase} {mark.block_index}" if mark.phase == "timed" else mark.phase
        event(mark.t_start_ns, TrackEvent.TYPE_SLICE_BEGIN, phases).name = name
        event(mark.t_end_ns, TrackEvent.TYPE_SLICE_END, phases)
    for channel in data.channels:
        samples = data.samples.get(channel.channel)
        if samples is None:
            continue
        uuid = first_counter + channel.channel
        counter = builder.add_packet().track_descriptor
        counter.uuid, counter.parent_uuid = uuid, process
        counter.name = f"{channel.site} {channel.name}"
        counter.counter.unit_name = channel.unit
        for t_ns, value in zip(samples.t_ns.tolist(), samples.value.tolist(), strict=True):
            event(t_ns, TrackEvent.TYPE_COUNTER, uuid).double_counter_value = value
    serialized: bytes = builder.serialize()
    return serialized


def _write_parquet(run: RunRow, data: RunData, provenance: str, path: Path) -> None:
    pyarrow.parquet.write_table(trace_table(run, data, provenance), path)


def _write_csv(run: RunRow, data: RunData, provenance: str, path: Path) -> None:
    pyarrow.csv.write_csv(trace_table(run, data, provenance), path)


def _write_perfetto(run: RunRow, data: RunData, provenance: str, path: Path) -> None:
    path.write_bytes(perfetto_trace(run, data, provenance))


FORMATS: dict[str, Callable[[RunRow, RunData, str, Path], None]] = {
    "parquet": _write_parquet,
    "csv": _write_csv,
    "perfetto": _write_perfetto,
}


def export_trace(run: RunRow, data: RunData, provenance: str, form: str, path: Path) -> None:
    """Write a run's samples to `path`, all of it or nothing. UserError for an unknown format."""
    if form not in FORMATS:
        raise unknown_name("trace format", form, FORMATS)
    write_whole(path, lambda part: FORMATS[form](run, data, provenance, part))


def operator_shares(ops: Sequence[OpProfile]) -> list[tuple[str, float, float]]:
    """(name, median cycles, share of all) of every operator, the dearest first.

    The first inference is left out where there are more: caches are cold in it.
    """
    medians = [
        (op.name, float(np.median(op.cycles[1:] if len(op.cycles) > 1 else op.cycles)))
        for op in ops
        if op.cycles
    ]
    total = sum(cycles for _, cycles in medians) or 1.0
    return sorted(((n, c, c / total) for n, c in medians), key=lambda row: -row[1])


def sparkline(values: Floats, width: int) -> str:
    """The shape of a signal in `width` characters: the mean of each stretch, scaled to its range.

    A constant signal is a flat line at the bottom.
    """
    if not len(values):
        return ""
    stretches = np.array_split(values, min(width, len(values)))
    means = np.array([s.mean() for s in stretches])
    span = float(means.max() - means.min())
    levels = np.zeros(len(means), int) if span == 0 else (means - means.min()) / span * 7.999
    return "".join(SPARKS[int(level)] for level in levels)


def channel_summary(channel: Channel, data: RunData) -> tuple[int, float, float, float, float]:
    """(samples, measured update rate in Hz, minimum, median, maximum) of one channel."""
    samples = data.samples[channel.channel]
    _, rate = measured_updates(samples.t_ns, samples.value)
    low, middle, high = np.quantile(samples.value, [0.0, 0.5, 1.0])
    return len(samples.t_ns), rate, float(low), float(middle), float(high)
