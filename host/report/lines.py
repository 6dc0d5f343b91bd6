"""Traces as lines: no peak lost, no line where nobody sampled, no waiting for other variants."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from host.report.charts import Traces
from host.report.data import FloatArray, Phase, Trace

_PAUSE_S = 1.0  # between phases of one run: longer ones are cut
_SILENCE = 10  # times the usual step between samples


def envelope(t_s: FloatArray, values: FloatArray, buckets: int) -> tuple[FloatArray, FloatArray]:
    """Minimum and maximum of each of `buckets` stretches, in time order: no peak is lost.

    Returns arrays of at most 2 * buckets points; shorter traces are returned unchanged.
    """
    keep = np.isfinite(values) & np.isfinite(t_s)
    t_s, values = t_s[keep], values[keep]
    if t_s.size <= 2 * buckets:
        return t_s, values
    edges = np.linspace(0, t_s.size, buckets + 1).astype(int)
    picked: list[int] = []
    for start, stop in itertools.pairwise(edges):
        part = values[start:stop]
        picked += sorted({start + int(part.argmin()), start + int(part.argmax())})
    return t_s[picked], values[picked]


def without_gaps(chart: Traces) -> Traces:
    """The run's own time: stretches in which the device ran other variants are cut short.

    Phases mark what belongs to the run. Each pause of more than a second between them becomes
    a narrow break, in which the lines are interrupted by a NaN.
    """
    busy: list[list[float]] = []
    for phase in sorted(chart.phases, key=lambda p: p.start_s):
        if busy and phase.start_s - busy[-1][1] <= _PAUSE_S:
            busy[-1][1] = max(busy[-1][1], phase.end_s)
        else:
            busy.append([phase.start_s, phase.end_s])
    if len(busy) < 2:
        return chart
    rest = 0.015 * sum(end - start for start, end in busy)
    knots, places, at = [], [], 0.0
    for start, end in busy:
        knots += [start, end]
        places += [at, at + end - start]
        at = places[-1] + rest

    def moved(t_s: FloatArray) -> FloatArray:
        return np.asarray(np.interp(t_s, knots, places), dtype=np.float64)

    traces = []
    for trace in chart.traces:
        breaks = [(a[1] + b[0]) / 2 for a, b in itertools.pairwise(busy)]
        spots = np.searchsorted(trace.t_s, breaks)
        t_s = np.insert(trace.t_s, spots, breaks)
        values = np.insert(trace.values, spots, np.nan)
        traces.append(replace(trace, t_s=moved(t_s), values=values))
    phases = []
    for phase in chart.phases:
        start, end = moved(np.array([phase.start_s, phase.end_s])).tolist()
        phases.append(Phase(phase.name, start, end))
    return Traces(chart.variant, tuple(traces), tuple(phases))


def drawn_line(trace: Trace, buckets: int) -> tuple[FloatArray, FloatArray]:
    """The envelope of a trace, interrupted by NaN where it already is and where nobody sampled."""
    known = trace.t_s[~np.isnan(trace.values)]
    steps = np.diff(known)
    silent = np.zeros(0, dtype=np.intp)
    if np.any(steps > 0):
        silent = np.flatnonzero(steps > _SILENCE * np.median(steps[steps > 0]))
    breaks = np.concatenate(
        [trace.t_s[np.isnan(trace.values)], (known[silent] + known[silent + 1]) / 2]
    )
    breaks.sort()
    t_s, values = envelope(trace.t_s, trace.values, buckets)
    spots = np.searchsorted(t_s, breaks)
    return np.insert(t_s, spots, breaks), np.insert(values, spots, np.nan)


def time_title(original: Traces, shown: Traces) -> str:
    cut = shown is not original
    return "Device time of this run, pauses cut (s)" if cut else "Device time (s)"
