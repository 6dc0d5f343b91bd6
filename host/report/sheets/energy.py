"""Energy per variant: net and gross, power, and how well it is known."""

from __future__ import annotations

from dataclasses import replace

from host.errors import RunStatus
from host.report.data import RunReport
from host.report.load import load_session
from host.report.sheet import Sheet, Table, Value
from host.report.text import PROVENANCE_TEXT, value_text
from host.store import Store
from quant.figures import Figure

_METRICS = ("energy_mj", "energy_gross_mj", "power_mw")


def energy(store: Store, session: str | None, baseline: str | None) -> Sheet:
    """Energy of the runs of a session. Raises UserError: no such session."""
    del baseline  # an energy report is of one session
    reports = load_session(store, session or "latest", traces=False)
    tables, findings, leads = [], [], []
    for report in reports:
        rows: list[tuple[Value, ...]] = []
        for run in report.runs:
            figures = [run.figures.get(metric) for metric in _METRICS]
            rows.append(
                (
                    run.variant,
                    *(figures if run.status is not RunStatus.FAILED else [None] * 3),
                    _per_joule(run),
                    _remark(run),
                )
            )
        tables.append(
            Table(
                f"{report.model_name} on {report.device}",
                (
                    "Variant",
                    "Net per inference",
                    "Gross per inference",
                    "Power, gross",
                    "Inferences per J",
                    "Remark",
                ),
                tuple(rows),
                _note(report.runs),
            )
        )
        leads.append(_lead(report.model_name, report.runs))
        findings += [
            f"{run.variant}: {f.reason}"
            for run in report.runs
            if (f := run.figures.get("energy_mj")) is not None and f.reason
        ]
    first = reports[0]
    return Sheet(
        "energy",
        "Energy",
        f"Session {first.session_id}, {first.created_at:%Y-%m-%d %H:%M}",
        " ".join(leads),
        tuple(dict.fromkeys(findings)),
        tuple(tables),
        any(report.emulated for report in reports),
        first.notes,
    )


def _lead(model: str, runs: tuple[RunReport, ...]) -> str:
    ranked = [run for run in runs if run.value("energy_mj") is not None]
    if not ranked:
        return f"{model}: no run has a valid energy."
    sources = {run.figures["energy_mj"].provenance for run in ranked}
    if len(sources) > 1:
        names = " and ".join(sorted(PROVENANCE_TEXT[p].short for p in sources))
        return f"{model}: the energies are {names} and are not ranked together."
    best = min(ranked, key=lambda run: run.value("energy_mj") or 0.0)
    figure = best.figures["energy_mj"]
    return (
        f"{model}: least energy with {best.variant}, {value_text(figure, unit=True)} per inference "
        f"({PROVENANCE_TEXT[figure.provenance].short})."
    )


def _per_joule(run: RunReport) -> Figure | None:
    """1000 / energy_mj, its interval turned over with it."""
    net = run.figure("energy_mj")
    if net is None or not net.value or net.value <= 0:
        return None
    low, high = net.ci_low, net.ci_high
    ends = (1e3 / high, 1e3 / low) if low and high and low > 0 else (None, None)
    return replace(
        net,
        metric="inferences_per_joule",
        value=1e3 / net.value,
        unit="1/J",
        ci_low=ends[0],
        ci_high=ends[1],
    )


def _note(runs: tuple[RunReport, ...]) -> str:
    read = dict.fromkeys(run.fingerprint["power"] for run in runs if "power" in run.fingerprint)
    words = f" Power read by: {', '.join(read)}." if read else ""
    return f"Net: gross minus the idle power of the same run. In brackets: 95 % intervals.{words}"


def _remark(run: RunReport) -> str:
    if run.status is not RunStatus.OK:
        return f"{run.status.value}: {run.message}"
    figure = run.figures.get("energy_mj")
    if figure is None:
        return "no power was read"
    return figure.reason
