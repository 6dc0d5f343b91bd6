"""The comparison as a JSON document: what `<model>_comparison.json` holds, and its reader.

Every figure carries value, ci, unit, provenance, n, valid and reason. The document is complete:
every page and plot drawn from a session can be drawn from its file alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from host.errors import RunStatus, UserError
from host.report.data import (
    LayerRow,
    Phase,
    RunReport,
    SessionReport,
    Stage,
    Trace,
    Verdict,
)
from host.report.verdict import decide
from quant.figures import Figure, Provenance

SCHEMA = "qhost.comparison"
VERSION = 1


def to_document(session: SessionReport) -> dict[str, Any]:
    """A JSON-serialisable document of the session, its verdict and its Pareto front included."""
    verdict = session.verdict or decide(session)
    return {
        "schema": {"name": SCHEMA, "version": VERSION},
        "session": {
            "session_id": session.session_id,
            "created_at": session.created_at.isoformat(),
            "device": session.device,
            "soc": session.soc,
            "model_name": session.model_name,
            "model_type": session.model_type,
            "db_path": session.db_path,
            "emulated": session.emulated,
            "emulation_basis": session.emulation_basis,
            "notes": list(session.notes),
            "stages": [{"name": s.name, "seconds": s.seconds} for s in session.stages],
            "settings": dict(session.settings),
        },
        "verdict": {
            "variant": verdict.variant,
            "headline": verdict.headline,
            "reasons": list(verdict.reasons),
            "constraints": list(verdict.constraints),
        },
        "pareto_front": {
            "x": "latency_ms",
            "y": "accuracy",
            "variants": list(verdict.front),
        },
        "runs": [_run(run) for run in session.runs],
    }


def dumps(session: SessionReport) -> str:
    """The document of a session as text."""
    return as_text(to_document(session))


def as_text(document: Mapping[str, Any]) -> str:
    """Strict JSON (no NaN or Infinity, which other readers refuse), indented, but with every list
    of numbers on one line: a trace of thousands of points is no longer than it must be."""
    lists: list[str] = []

    def without_lists(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: without_lists(item) for key, item in value.items()}
        if not isinstance(value, list):
            return value
        if len(value) > 2 and all(v is None or isinstance(v, int | float) for v in value):
            lists.append(json.dumps(value, allow_nan=False))
            return f"\0{len(lists) - 1}"  # no text of a report holds a NUL
        return [without_lists(item) for item in value]

    text = json.dumps(without_lists(document), indent=2, ensure_ascii=False, allow_nan=False)
    return re.sub(r'"\\u0000(\d+)"', lambda match: lists[int(match[1])], text)


def read(path: Path) -> SessionReport:
    """Read a comparison file.

    Raises:
        UserError: the file is missing, is not JSON, is no comparison, or is of a newer version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"Cannot read {path}: {getattr(error, 'strerror', None) or 'not a text file'}.",
            "Give the <model>_comparison.json that `qhost compare-all` wrote.",
        ) from error
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not JSON (line {error.lineno}: {error.msg}).",
            "Give the <model>_comparison.json that `qhost compare-all` wrote.",
        ) from error
    return from_document(document, str(path))


def from_document(document: Any, where: str = "the document") -> SessionReport:
    """The session of a document made by `to_document`.

    Raises:
        UserError: not a comparison, a newer version, or a missing or malformed field.
    """
    schema = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(schema, dict) or schema.get("name") != SCHEMA:
        raise UserError(
            f"{where} is not a qhost comparison (no schema {SCHEMA!r}).",
            "Give the <model>_comparison.json that `qhost compare-all` wrote.",
        )
    version = schema.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise UserError(
            f"{where} has comparison version {version!r}; this qhost reads up to {VERSION}.",
            "Update qhost, or write the comparison again with this version.",
        )
    try:
        return _session(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{where} is damaged: {type(error).__name__} {error}.",
            "Write the comparison again with `qhost compare-all`.",
        ) from error


def figure_document(figure: Figure) -> dict[str, Any]:
    """One figure with everything a reader needs to trust it or not."""
    low, high = _finite(figure.ci_low), _finite(figure.ci_high)
    return {
        "value": _finite(figure.value),
        "ci": [low, high] if low is not None and high is not None else None,
        "unit": figure.unit,
        "provenance": figure.provenance.value,
        "n": figure.n,
        "valid": figure.valid,
        "reason": figure.reason,
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _short(value: float) -> float | None:
    """Six digits: more than a sensor has."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _run(run: RunReport) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "method": run.method,
        "variant": run.variant,
        "options": json.loads(run.options_json) if run.options_json else {},
        "status": run.status.value,
        "failure_class": run.failure_class,
        "message": run.message,
        "accuracy_metric": run.accuracy_metric,
        "accuracy_higher_is_better": run.accuracy_higher_is_better,
        "figures": {name: figure_document(figure) for name, figure in run.figures.items()},
        "blocks": {name: values.tolist() for name, values in run.blocks.items()},
        "other_figures": [{"metric": f.metric, **figure_document(f)} for f in run.others],
        "fingerprint": dict(run.fingerprint),
        "notes": list(run.notes),
        "layers": [
            {
                "name": layer.name,
                "op_type": layer.op_type,
                "precision": layer.precision,
                "sqnr_db": _finite(layer.sqnr_db),
                "note": layer.note,
            }
            for layer in run.layers
        ],
        "phases": [{"name": p.name, "start_s": p.start_s, "end_s": p.end_s} for p in run.phases],
        "traces": [
            {
                "channel": trace.channel,
                "unit": trace.unit,
                "provenance": trace.provenance.value,
                "t_s": [None if v is None else round(v, 5) for v in map(_finite, trace.t_s)],
                "values": [_short(v) for v in trace.values.tolist()],
                "samples": trace.samples,
            }
            for trace in run.traces
        ],
    }


def _session(document: Mapping[str, Any]) -> SessionReport:
    head, said = document["session"], document["verdict"]
    return SessionReport(
        session_id=head["session_id"],
        created_at=datetime.fromisoformat(head["created_at"]),
        device=head["device"],
        soc=head["soc"],
        model_name=head["model_name"],
        model_type=head["model_type"],
        runs=tuple(_read_run(run) for run in document["runs"]),
        notes=tuple(head["notes"]),
        db_path=head["db_path"],
        emulated=head["emulated"],
        emulation_basis=head["emulation_basis"],
        stages=tuple(Stage(s["name"], s["seconds"]) for s in head["stages"]),
        settings=head["settings"],
        verdict=Verdict(
            said["variant"],
            said["headline"],
            tuple(said["reasons"]),
            tuple(said["constraints"]),
            tuple(document["pareto_front"]["variants"]),
        ),
    )


def _read_run(run: Mapping[str, Any]) -> RunReport:
    return RunReport(
        run_id=run["run_id"],
        method=run["method"],
        variant=run["variant"],
        status=RunStatus(run["status"]),
        failure_class=run["failure_class"],
        message=run["message"],
        figures={name: _read_figure(name, f) for name, f in run["figures"].items()},
        blocks={name: np.array(values, np.float64) for name, values in run["blocks"].items()},
        others=tuple(_read_figure(f["metric"], f) for f in run["other_figures"]),
        accuracy_metric=run["accuracy_metric"],
        accuracy_higher_is_better=run["accuracy_higher_is_better"],
        options_json=json.dumps(run["options"], sort_keys=True) if run["options"] else "",
        layers=tuple(
            LayerRow(x["name"], x["op_type"], x["precision"], x["sqnr_db"], x["note"])
            for x in run["layers"]
        ),
        fingerprint=run["fingerprint"],
        traces=tuple(_read_trace(t) for t in run["traces"]),
        phases=tuple(Phase(p["name"], p["start_s"], p["end_s"]) for p in run["phases"]),
        notes=tuple(run["notes"]),
    )


def _read_figure(name: str, figure: Mapping[str, Any]) -> Figure:
    low, high = figure["ci"] or (None, None)
    return Figure(
        metric=name,
        value=figure["value"],
        unit=figure["unit"],
        provenance=Provenance(figure["provenance"]),
        n=figure["n"],
        ci_low=low,
        ci_high=high,
        valid=figure["valid"],
        reason=figure["reason"],
    )


def _read_trace(trace: Mapping[str, Any]) -> Trace:
    def floats(values: Sequence[float | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([np.nan if v is None else v for v in values], dtype=np.float64)

    t_s, values = floats(trace["t_s"]), floats(trace["values"])
    if t_s.shape != values.shape:
        raise ValueError(f"trace {trace['channel']!r}: {t_s.size} times, {values.size} values")
    return Trace(
        trace["channel"],
        trace["unit"],
        Provenance(trace["provenance"]),
        t_s,
        values,
        trace["samples"],
    )
