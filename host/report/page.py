"""One self-contained HTML file: verdict, table, plots, a section per variant. No network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import plotly
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from host.errors import RunStatus
from host.report import charts, interactive, interactive_runs
from host.report.data import MAIN_METRICS, NOT_REAL, Phase, RunReport, SessionReport
from host.report.marks import chart_of, numbering, phase_kind, phase_word, time_range
from host.report.text import (
    ABSENT,
    PROVENANCE_TEXT,
    accuracy_name,
    arrow,
    baseline_text,
    column_decimals,
    direction,
    interval_text,
    value_text,
)
from host.report.verdict import with_verdict
from quant.figures import METRICS, Figure, Provenance

_LAYERS_CAPTION = "SQNR of each quantized weight against the float one."
_TILES = ("latency_ms", "accuracy", "energy_mj", "model_size_bytes")


@dataclass(frozen=True)
class Cell:
    """One figure as the page shows it."""

    text: str
    interval: str
    change: str  # against fp16
    mark: str  # the provenance letter
    source: str  # the provenance in words
    short: str  # the provenance in one or two words
    not_real: bool
    valid: bool
    reason: str
    n: int


@dataclass(frozen=True)
class ChartSlot:
    """A place for a chart: `key` finds its figure in the page's data."""

    key: str
    title: str
    summary: str  # what a screen reader says
    caption: str
    min_width: int = 0


@dataclass(frozen=True)
class VariantSection:
    run: RunReport
    number: int
    role: str
    cells: tuple[tuple[charts.Axis, Cell], ...]
    layers: ChartSlot | None
    worst: tuple[tuple[int, Any], ...]
    trace: ChartSlot | None


def report_page(session: SessionReport) -> str:
    """The whole report of a session as one HTML text."""
    session = with_verdict(session)
    figures: dict[str, Any] = {}
    numbers = numbering(session)
    slots = {
        kind: _slots(session, kind, figures, numbers)
        for kind in ("pareto", "bars", "radar", "timeline")
    }
    return _render("report.html.j2", session, figures, slots=slots, full=True)


def plot_page(session: SessionReport, plot_type: str) -> str:
    """One plot type of a session as one HTML text, with the same head, banner and key.

    Raises:
        UserError: the session has nothing to draw for this plot type.
    """
    session = with_verdict(session)
    figures: dict[str, Any] = {}
    slots = {plot_type: _slots(session, plot_type, figures, numbering(session))}
    if not figures:
        raise charts.nothing_to_draw(session, plot_type)
    return _render("report.html.j2", session, figures, slots=slots, full=False)


def _render(
    template: str,
    session: SessionReport,
    figures: dict[str, Any],
    *,
    slots: Mapping[str, tuple[ChartSlot, ...]],
    full: bool,
) -> str:
    verdict = session.verdict
    assert verdict is not None
    metrics = session.metrics()
    parts = charts.roles(session)
    numbers = numbering(session)
    best = next((r for r in session.runs if r.variant == verdict.variant), None)
    runs = session.runs if full else ()
    sections = [_section(session, run, figures, numbers, parts) for run in runs]
    page = _environment().get_template(template)
    return page.render(
        session=session,
        full=full,
        verdict=verdict,
        best=best,
        tiles=[(charts.axis(session, m), _cell(session, best, m)) for m in _TILES if m in metrics]
        if best
        else [],
        axes=[charts.axis(session, m) for m in metrics],
        rows=[
            (run, numbers[run.variant], [_cell(session, run, m) for m in metrics])
            for run in session.runs
        ],
        sections=sections,
        slots=slots,
        chart_title=chart_of,
        roles=parts,
        marks=_legend(session),
        ok=RunStatus.OK,
        arrow=arrow,
        direction=direction,
        accuracy_name=accuracy_name(session),
        phase_names=_phase_names,
        phase_word=phase_word,
        role_names=charts.role_names(parts.values()),
        radar_key=charts.radar_key(session),
        unreal=all(
            r.figures["latency_ms"].provenance in NOT_REAL
            for r in session.drawable
            if r.value("latency_ms") is not None
        ),
        style=Markup(_asset("report.css")),
        script=Markup(_asset("report.js")),
        plotly=Markup(plotly_script() if figures else ""),
        figures=Markup(_script_json(figures)),
    )


def render_sheet(sheet: Any, banner: str, cell: Callable[[Any], Mapping[str, object]]) -> str:
    """A report made of tables (host.report.sheet.Sheet) as one HTML text."""
    used = dict.fromkeys(
        v.provenance
        for table in sheet.tables
        for row in table.rows
        for v in row
        if isinstance(v, Figure) and v.value is not None
    )
    return (
        _environment()
        .get_template("sheet.html.j2")
        .render(
            sheet=sheet,
            banner=banner,
            cell=cell,
            marks=[(PROVENANCE_TEXT[p], p in NOT_REAL) for p in Provenance if p in used],
            style=Markup(_asset("report.css")),
            script=Markup(_asset("report.js")),
        )
    )


def plotly_script() -> str:
    """Plotly's JavaScript from the installed package, so that the page needs no network."""
    text = resources.files(plotly).joinpath("package_data", "plotly.min.js").read_text("utf-8")
    return text.replace("</script", "<\\/script")


@cache
def _environment() -> Environment:
    folder = resources.files("host.report").joinpath("templates")
    environment = Environment(
        loader=FileSystemLoader(str(folder)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    return environment


@cache
def _asset(name: str) -> str:
    return resources.files("host.report").joinpath("templates", name).read_text("utf-8")


def breakable(variant: str) -> Markup:
    """A variant's name with places where a narrow column may break it."""
    escaped = str(Markup.escape(variant))
    for mark in (",", "+", "["):
        escaped = escaped.replace(mark, f"{mark}<wbr>")
    return Markup(escaped)


def _script_json(value: Any) -> str:
    """JSON that cannot end its script element, nor be misread by a strict parser."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _slots(
    session: SessionReport, kind: str, figures: dict[str, Any], numbers: dict[str, int]
) -> tuple[ChartSlot, ...]:
    """Draw every chart of a plot type into `figures`; empty when there is nothing to draw."""
    title = chart_of(kind)

    def add(
        key: str, figure: interactive.Chart, name: str, summary: str, caption: str
    ) -> ChartSlot:
        figures[key] = figure
        return ChartSlot(key, name, summary, caption, int(figure.pop("min_width", 0)))

    if kind == "pareto":
        chart = charts.pareto(session)
        if not chart.points:
            return ()
        summary = (
            f"Scatter plot of {chart.y.label} against {chart.x.label}, {len(chart.points)} "
            "variants. " + "; ".join(f"{p.variant} {p.x.text}, {p.y.text}" for p in chart.points)
        )
        return (add(kind, interactive.pareto(chart, numbers), title, summary, chart.caption),)
    if kind == "bars":
        bars = charts.bars(session)
        return tuple(
            add(
                f"bars{i}",
                interactive.bars(bars, i, numbers),
                axis.label,
                f"{axis.title}, {axis.hint}. "
                + "; ".join(
                    f"{name} {v.text if v else 'no valid figure'}"
                    for name, v in zip(bars.variants, bars.values[i], strict=True)
                ),
                bars.caption if i == len(bars.axes) - 1 else "",
            )
            for i, axis in enumerate(bars.axes)
        )
    if kind == "radar":
        radar = charts.shares(session, charts.RADAR_METRICS)
        if len(radar.axes) < 3:
            return ()
        return tuple(
            add(
                f"radar{i}",
                interactive.radar(radar, i),
                f"{numbers[name]} {name}",
                f"Radar of {name}: "
                + ", ".join(
                    f"{a.short} {'none' if s is None else format(s, '.0%')} of the best"
                    for a, s in zip(radar.axes, radar.shares[i], strict=True)
                ),
                radar.caption if i == len(radar.variants) - 1 else "",
            )
            for i, name in enumerate(radar.variants)
        )
    if kind == "heatmap":
        heat = charts.shares(session, charts.HEATMAP_METRICS)
        if not heat.axes:
            return ()
        caption = f"Darker: closer to the best. ◌ not measured. {heat.caption}"
        summary = "Heat map of the table below."
        return (add(kind, interactive.heatmap(heat, numbers), title, summary, caption),)
    if kind == "layers":
        return tuple(
            add(
                f"layers{i}",
                interactive_runs.layers(c),
                c.variant,
                _layers_summary(c),
                _LAYERS_CAPTION,
            )
            for i, c in enumerate(charts.layers(session))
        )
    if kind == "trace":
        return tuple(
            add(
                f"trace{i}",
                interactive_runs.trace(c),
                c.variant,
                _trace_summary(c),
                _trace_caption(c),
            )
            for i, c in enumerate(charts.traces(session))
        )
    lines = charts.timelines(session)
    if not lines:
        return ()
    summary = "When each run loaded, warmed up and ran, in device time."
    return (add(kind, interactive_runs.timeline(lines, numbers), title, summary, ""),)


def _layers_summary(chart: charts.Layers) -> str:
    worst = ", ".join(f"{row.name} {row.sqnr_db:.1f} dB" for _, row in chart.worst(3))
    return f"SQNR of {len(chart.drawn)} layers of {chart.variant}. Lowest: {worst}."


def _trace_summary(chart: charts.Traces) -> str:
    names = ", ".join(f"{t.channel} in {t.unit}" for t in chart.traces)
    start, end = time_range(chart)
    return f"Traces of {chart.variant} over {end - start:.0f} s: {names}."


def _trace_caption(chart: charts.Traces) -> str:
    parts = [f"{t.channel}: {t.samples or t.t_s.size:,} samples" for t in chart.traces]
    drawn = any(
        (t.samples or t.t_s.size) > 2 * interactive_runs.ENVELOPE_BUCKETS for t in chart.traces
    )
    if drawn:
        parts.append("drawn as minimum and maximum per stretch")
    return " · ".join(parts)


def _phase_names(phases: tuple[Phase, ...]) -> list[str]:
    return list(dict.fromkeys(phase_kind(p.name) for p in phases))


def _section(
    session: SessionReport,
    run: RunReport,
    figures: dict[str, Any],
    numbers: dict[str, int],
    parts: Mapping[str, str],
) -> VariantSection:
    number = numbers[run.variant]
    layers = charts.Layers(run.variant, run.layers)
    layer_slot = trace_slot = None
    if layers.drawn:
        figures[f"v{number}layers"] = interactive_runs.layers(layers)
        layer_slot = ChartSlot(
            f"v{number}layers",
            "Error by layer",
            _layers_summary(layers),
            _LAYERS_CAPTION,
        )
    if run.traces:
        chart = charts.Traces(run.variant, run.traces, run.phases)
        figures[f"v{number}trace"] = interactive_runs.trace(chart)
        trace_slot = ChartSlot(
            f"v{number}trace", "Traces", _trace_summary(chart), _trace_caption(chart)
        )
    names = (*MAIN_METRICS, *(m for m in METRICS if m not in MAIN_METRICS))
    return VariantSection(
        run,
        number,
        parts.get(run.variant, ""),
        tuple((charts.axis(session, m), cell) for m in names for cell in _cells(session, run, m)),
        layer_slot,
        layers.worst(5),
        trace_slot,
    )


def _cells(session: SessionReport, run: RunReport, metric: str) -> list[Cell]:
    """The figure of a metric and those of the same metric from other sources."""
    if metric not in run.figures:
        return []
    decimals = column_decimals(session, metric)
    others = [_figure_cell(f, decimals) for f in run.others if f.metric == metric]
    return [_cell(session, run, metric), *others]


def _cell(session: SessionReport, run: RunReport, metric: str) -> Cell:
    figure = run.figures.get(metric)
    if figure is None:
        return Cell(ABSENT, "", "", "", "", "", False, True, "", 0)
    change = baseline_text(session, run, metric)
    return _figure_cell(figure, column_decimals(session, metric), change)


def _figure_cell(figure: Figure, decimals: int, change: str = "") -> Cell:
    source = PROVENANCE_TEXT[figure.provenance]
    if figure.value is None:
        return Cell(ABSENT, "", "", "", "", "", False, False, figure.reason, figure.n)
    return Cell(
        value_text(figure, decimals=decimals),
        interval_text(figure, decimals=decimals),
        change,
        source.mark,
        source.long,
        source.short,
        figure.provenance in NOT_REAL,
        figure.valid,
        figure.reason,
        figure.n,
    )


def _legend(session: SessionReport) -> list[tuple[Provenance, Any, bool]]:
    """Every provenance that occurs in the session, with its words."""
    every = [f for run in session.runs for f in (*run.figures.values(), *run.others)]
    used = dict.fromkeys(f.provenance for f in every if f.value is not None)
    return [(p, PROVENANCE_TEXT[p], p in NOT_REAL) for p in Provenance if p in used]
