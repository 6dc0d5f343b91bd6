"""The Matplotlib pictures: every type at 3 and 12 variants, labels whole and apart, data right."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import plotly.graph_objects as go
import pytest
from matplotlib.text import Text

from host.errors import UserError
from host.report import charts, interactive, interactive_runs, static
from host.report.charts import PLOT_TYPES
from host.report.labels import place_labels
from host.report.lines import drawn_line, envelope, without_gaps
from host.report.marks import HEATMAP_DARK, numbering, short_name
from host.report.static_compare import heat_colours
from host.report.static_frame import INK, STYLE
from quant.figures import Provenance

_spec = importlib.util.spec_from_file_location(
    "report_rows", Path(__file__).with_name("report_rows.py")
)
assert _spec and _spec.loader
rows = sys.modules.setdefault("report_rows", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(rows)


def texts_of(figure):
    """Every text that is drawn, with its box in pixels."""
    renderer = figure.canvas.get_renderer()
    figure.draw(renderer)
    unseen = set()  # Matplotlib keeps labels of ticks beyond the limits, and does not draw them
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if not low <= tick.get_loc() <= high:
                    unseen |= {tick.label1, tick.label2}
    found = []
    for text in figure.findobj(lambda a: isinstance(a, Text) and a.get_visible()):
        if text.get_text().strip() and text not in unseen:
            box = Text.get_window_extent(text, renderer)  # without an annotation's arrow
            if box.width > 0 and box.height > 0:
                found.append((text.get_text(), box))
    return found


@pytest.mark.parametrize("count", [3, 12])
@pytest.mark.parametrize("kind", PLOT_TYPES)
def test_no_label_is_cut_off_or_covered(kind, count):
    session = rows.session(count, awkward=count == 12)
    with mpl.rc_context(STYLE):
        figure = static.draw_plot(session, kind)
        texts = texts_of(figure)
    width, height = figure.canvas.get_width_height()
    shown = [(t, b) for t, b in texts if b.x1 > 0 and b.y1 > 0 and b.x0 < width and b.y0 < height]
    cut = [t for t, b in shown if b.x0 < -1 or b.y0 < -1 or b.x1 > width + 1 or b.y1 > height + 1]
    assert cut == []
    covered = []
    for (a, box), (b, other) in itertools.combinations(shown, 2):
        wide = min(box.x1, other.x1) - max(box.x0, other.x0)
        high = min(box.y1, other.y1) - max(box.y0, other.y0)
        if wide > 2 and high > 3:
            covered.append((a, b))
    assert covered == []
    words = " ".join(t for t, _ in shown)
    assert "EMULATED DEVICE" in words
    if kind in ("pareto", "bars", "layers"):
        assert "is better" in words


@pytest.mark.parametrize("kind", ["pareto", "bars", "radar", "heatmap"])
def test_a_predicted_figure_among_measured_ones_is_announced(kind):
    session = rows.session(3, Provenance.MEASURED)
    with mpl.rc_context(STYLE):
        plain = " ".join(t for t, _ in texts_of(static.draw_plot(session, kind)))
        guess = replace(session.runs[1].figures["latency_ms"], provenance=Provenance.PREDICTED)
        runs = (session.runs[0], rows.with_figure(session.runs[1], guess), session.runs[2])
        mixed = replace(session, runs=runs)
        warned = " ".join(t for t, _ in texts_of(static.draw_plot(mixed, kind)))
    assert "NOT ALL MEASURED" not in plain
    assert "NOT ALL MEASURED: figures predicted by a fitted model" in warned
    assert "MIXED" in warned


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_pictures_are_written_whole_and_alike(tmp_path, suffix):
    session = rows.session(3)
    first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    static.save_plot(session, "pareto", first)
    static.save_plot(session, "pareto", second)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"a.{suffix}", f"b.{suffix}"]


def test_a_failed_picture_leaves_nothing(tmp_path):
    session = rows.session(3)
    bare = replace(session, runs=tuple(replace(r, traces=()) for r in session.runs))
    with pytest.raises(UserError, match="Nothing to draw"):
        static.save_plot(bare, "trace", tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [1, 3, 12])
def test_plotly_accepts_every_figure(count):
    session = rows.session(count)
    numbers = numbering(session)
    bars = charts.bars(session)
    heat = charts.shares(session, charts.HEATMAP_METRICS)
    radar = charts.shares(session, charts.RADAR_METRICS)
    drawn = [
        interactive.pareto(charts.pareto(session), numbers),
        *(interactive.bars(bars, i, numbers) for i in range(len(bars.axes))),
        *(interactive.radar(radar, i) for i in range(count)),
        interactive.heatmap(heat, numbers),
        *(interactive_runs.layers(c) for c in charts.layers(session)),
        *(interactive_runs.trace(c) for c in charts.traces(session)),
        interactive_runs.timeline(charts.timelines(session), numbers),
    ]
    for chart in drawn:
        # go.Figure refuses unknown properties and values; colours are resolved by the page.
        go.Figure(json.loads(_without_tokens({k: chart[k] for k in ("data", "layout")})))
        for labels in chart.get("annotations", {}).values():
            go.Figure(json.loads(_without_tokens({"layout": {"annotations": labels}})))


def _without_tokens(chart):
    text = json.dumps(chart, allow_nan=False)
    for name in ("/0.22", "/0.8"):
        text = text.replace(name + '"', '"')
    names = sorted({part.split('"')[0] for part in text.split('"@')[1:]}, key=len, reverse=True)
    assert all(_defined(name) for name in names), names
    for name in names:
        text = text.replace(f'"@{name}"', '"#123456"')
    return text


def _defined(token):
    css = (Path(static.__file__).parent / "templates" / "report.css").read_text()
    return css.count(f"--{token}:") == (1 if token in ("x",) else 2)  # light and dark


def test_pareto_shows_intervals_and_only_valid_figures():
    chart = charts.pareto(rows.session(12, awkward=True))
    names = [p.variant for p in chart.points]
    assert "int4[group=64]" not in names  # its latency is not valid
    assert "not drawn, no valid figure: int4[group=64]" in chart.caption
    int8 = next(p for p in chart.points if p.variant == "int8")
    assert (int8.x.value, int8.x.low, int8.x.high) == pytest.approx((1.0, 0.99, 1.01))
    assert (int8.y.value, int8.y.low, int8.y.high) == pytest.approx((76.0, 74.0, 78.0))
    assert int8.role == "best"
    assert int8.x.hollow
    assert [x for x, _ in chart.front] == pytest.approx([0.9, 1.0, 4.0])
    assert chart.x.hint == "↓ lower is better · emulated"


def test_pareto_draws_no_front_across_provenances():
    session = rows.session(3)
    guess = replace(session.runs[2].figures["latency_ms"], provenance=Provenance.PREDICTED)
    runs = (*session.runs[:2], rows.with_figure(session.runs[2], guess))
    chart = charts.pareto(replace(session, runs=runs))
    assert chart.front == ()
    assert chart.x.source == "MIXED: emulated + predicted"
    assert "no front is drawn across provenances" in chart.caption


def test_measured_figures_are_drawn_solid():
    chart = charts.pareto(rows.session(3, Provenance.MEASURED))
    assert not any(p.x.hollow or p.y.hollow for p in chart.points)


def test_shares_are_of_the_best():
    chart = charts.shares(rows.session(3), ("accuracy", "latency_ms"))
    # accuracy 0.765 0.760 0.740, latency 4.0 1.0 0.9
    assert chart.shares[0] == pytest.approx((1.0, 0.9 / 4.0))
    assert chart.shares[2] == pytest.approx((0.740 / 0.765, 1.0))
    assert chart.best == ("76.5 %", "0.900 ms")


def test_every_heat_colour_leaves_its_text_readable():
    def light(colour):
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    colours = heat_colours()
    for share in (*np.linspace(0, 1, 1001), 0.5999, 0.6, 0.6004, 0.6015):
        text = light((1, 1, 1)) if share >= HEATMAP_DARK else light(mpl.colors.to_rgb(INK))
        dim, bright = sorted((text, light(colours(float(share))[:3])))
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, share


def test_leaders_cross_no_labels():
    random = np.random.default_rng(18)  # a crowd in which five would, if nothing kept them apart
    xs, ys = random.integers(120, 200, 9), random.integers(120, 160, 9)
    points = [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
    sizes = [(float(width), 14.0) for width in random.integers(40, 140, 9)]
    placed = place_labels(points, sizes, (400, 300))
    assert any(spot.leader for spot in placed)
    for (spot, (x, y)), (i, other) in itertools.product(
        zip(placed, points, strict=True), enumerate(placed)
    ):
        if spot is other or not spot.leader:
            continue
        for part in np.linspace(0, 1, 100):
            dx = abs(x + (spot.x - x) * part - other.x)
            dy = abs(y + (spot.y - y) * part - other.y)
            assert not (dx < sizes[i][0] / 2 and dy < sizes[i][1] / 2)


def test_envelope_keeps_every_peak():
    t_s = np.linspace(0, 100, 100_000)
    values = np.sin(t_s)
    values[54_321] = 9.0
    values[12_345] = -9.0
    kept_t, kept = envelope(t_s, values, 500)
    assert kept_t.size <= 1000
    assert kept.max() == 9.0
    assert kept.min() == -9.0
    assert np.all(np.diff(kept_t) > 0)
    short_t, short = envelope(t_s[:10], values[:10], 500)
    assert short.size == 10
    assert short_t.size == 10


def test_pauses_between_blocks_are_cut():
    t_s = np.concatenate([np.arange(0, 10, 0.5), np.arange(100, 110, 0.5)])
    trace = charts.Trace("p", "mW", Provenance.MEASURED, t_s, np.ones_like(t_s))
    phases = (charts.Phase("timed", 0, 10), charts.Phase("timed", 100, 110))
    shown = without_gaps(charts.Traces("v", (trace,), phases))
    ends = [(p.start_s, p.end_s) for p in shown.phases]
    assert ends[0] == (0.0, 10.0)
    assert ends[1] == pytest.approx((10.3, 20.3))  # a break of 1.5 % of 20 s
    line = shown.traces[0]
    assert np.isnan(line.values).sum() == 1
    assert np.all(np.diff(line.t_s) > 0)


def test_no_line_where_nobody_sampled():
    t_s = np.concatenate([np.arange(0, 1, 0.01), np.arange(3, 4, 0.01)])
    trace = charts.Trace("p", "mW", Provenance.MEASURED, t_s, np.ones_like(t_s))
    line_t, line = drawn_line(trace, 500)
    assert np.isnan(line).sum() == 1
    assert 1 < line_t[np.isnan(line)][0] < 3


def test_shortened_names_stay_different():
    names = [f"int8[calibration-method={m}]" for m in ("percentile", "entropy", "mse")]
    short = [short_name(name, 20) for name in names]
    assert len(set(short)) == 3
    assert all(len(name) <= 20 for name in short)
    assert short_name("int8", 20) == "int8"


def test_labels_avoid_points_and_each_other():
    random = np.random.default_rng(1)
    points = [tuple(p) for p in random.uniform(50, 350, (12, 2))]
    sizes = [(60.0, 14.0)] * 12
    placed = place_labels(points, sizes, (400, 400))
    boxes = [(p.x - 30, p.y - 7, p.x + 30, p.y + 7) for p in placed]
    for a, b in itertools.combinations(boxes, 2):
        assert min(a[2], b[2]) - max(a[0], b[0]) <= 0 or min(a[3], b[3]) - max(a[1], b[1]) <= 0
    assert all(b[0] >= 0 and b[1] >= 0 and b[2] <= 400 and b[3] <= 400 for b in boxes)
