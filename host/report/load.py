"""From the database to the rows of the reports."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from host.errors import UserError
from host.measure import block_values
from host.report.data import LayerRow, Phase, RunReport, SessionReport, Stage, Trace
from host.report.lines import envelope
from host.stats.power import choose_power
from host.store import Store
from host.store.rows import Channel, DeviceRow, RunData, RunRow, SessionRow
from quant.figures import Figure, Provenance

if TYPE_CHECKING:
    from quant.artifact import Artifact

# Points kept of each trace: more than a plot has pixels, and a page of 12 variants stays small.
_TRACE_BUCKETS = 1000
_NS = 1e-9

# Which figure stands for a metric where a run has several: the one closest to the device, as in
# the view best_figures.
_CLOSENESS = (
    Provenance.MEASURED,
    Provenance.HTP_EMULATOR,
    Provenance.EMULATED_DEVICE,
    Provenance.COMPILER,
    Provenance.FILE,
    Provenance.ORT_CPU,
    Provenance.PREDICTED,
)


def load_session(
    store: Store, name: str, *, artifacts: Iterable[Path] = (), traces: bool = True
) -> list[SessionReport]:
    """The reports of a session, one per model and device, in the order of their runs.

    Args:
        name: session id, the beginning of one, or `latest`.
        artifacts: .qnn files that may be those of the session; the per-layer reports come from
            the ones whose sha256 the runs name. The database does not hold them.
        traces: read the raw data too: traces, phases, and the blocks that a verdict rests on.

    Raises:
        UserError: no such session, or it has no runs.
    """
    session = store.session(name)
    runs = store.runs_of(session.session_id)
    if not runs:
        raise UserError(
            f"Session {session.session_id} has no runs.", "It was interrupted before its first job."
        )
    wanted = {run.artifact_sha256 for run in runs if run.artifact_sha256}
    layers = {a.sha256: _layers(a) for a in _matching(artifacts, wanted)}
    devices = {d.device_serial: d for d in _devices(store, session.session_id)}
    groups: dict[tuple[str, str], list[RunRow]] = {}
    for run in runs:
        groups.setdefault((run.model_name, run.device_serial), []).append(run)
    return [
        _report(store, session, devices.get(serial), rows, layers, traces=traces)
        for (_, serial), rows in groups.items()
    ]


def _report(
    store: Store,
    session: SessionRow,
    device: DeviceRow | None,
    rows: Sequence[RunRow],
    layers: Mapping[str, tuple[LayerRow, ...]],
    *,
    traces: bool,
) -> SessionReport:
    first = rows[0]
    description: dict[str, Any] = json.loads(device.description_json) if device else {}
    emulated = device.emulated if device else session.emulated
    notes = [note for row in rows for note in json.loads(row.notes_json)]
    common = [n for n in dict.fromkeys(notes) if notes.count(n) == len(rows)]
    data = {row.run_id: store.run_data(row.run_id) for row in rows} if traces else {}
    start_ns = min((m.t_start_ns for d in data.values() for m in d.marks), default=0)
    return SessionReport(
        session_id=session.session_id,
        created_at=session.created_at.replace(tzinfo=UTC),
        device=first.device,
        soc=first.soc,
        model_name=first.model_name,
        model_type=first.model_type,
        runs=tuple(
            _run(
                row,
                store.figures_of(row.run_id),
                data.get(row.run_id),
                layers.get(row.artifact_sha256 or "", ()),
                start_ns,
                emulated=emulated,
                notes_above=common,
                said_above=description,
            )
            for row in rows
        ),
        notes=tuple(common),
        db_path=str(store.path),
        emulated=emulated,
        emulation_basis=str(description.get("emulation_basis", "")),
        stages=_stages(store, [row.run_id for row in rows]),
        settings=_settings(session, first, description),
    )


def _run(
    row: RunRow,
    figures: Sequence[Figure],
    data: RunData | None,
    layers: tuple[LayerRow, ...],
    start_ns: int,
    *,
    emulated: bool,
    notes_above: Sequence[str],
    said_above: Mapping[str, Any],
) -> RunReport:
    best, others = closest(figures)
    source = Provenance.EMULATED_DEVICE if emulated else Provenance.MEASURED
    fingerprint = {
        "model": row.model_fingerprint,
        "task": row.task_fingerprint,
        "artifact": row.artifact_sha256 or "",
        "power": row.power_method or "",
        **{
            key: str(value)
            for key, value in json.loads(row.fingerprint_json).items()
            if said_above.get(key) != value and key != "perf_profiles"
        },
    }
    return RunReport(
        run_id=row.run_id,
        method=row.method,
        variant=row.variant,
        status=row.status,
        failure_class=row.failure_class.value if row.failure_class else "",
        message=row.message,
        figures=best,
        blocks=block_values(data) if data else {},
        others=others,
        accuracy_metric=row.accuracy_metric or "",
        accuracy_higher_is_better=row.accuracy_higher_is_better,
        options_json="" if row.options_json in ("", "{}") else row.options_json,
        layers=layers,
        fingerprint={key: value for key, value in fingerprint.items() if value},
        traces=_traces(data, start_ns, source) if data else (),
        phases=tuple(
            Phase(m.phase, (m.t_start_ns - start_ns) * _NS, (m.t_end_ns - start_ns) * _NS)
            for m in (data.marks if data else ())
        ),
        notes=tuple(n for n in json.loads(row.notes_json) if n not in notes_above),
    )


def closest(figures: Iterable[Figure]) -> tuple[dict[str, Figure], tuple[Figure, ...]]:
    """For each metric the figure closest to the device, a valid one first; and the rest."""
    best: dict[str, Figure] = {}
    others: list[Figure] = []
    order = sorted(
        figures, key=lambda f: (not f.valid, f.value is None, _CLOSENESS.index(f.provenance))
    )
    for figure in order:
        if figure.metric in best:
            others.append(figure)
        else:
            best[figure.metric] = figure
    return best, tuple(others)


def _traces(data: RunData, start_ns: int, source: Provenance) -> tuple[Trace, ...]:
    """Power, the hottest temperature, and the NPU's clock: what explains a run."""
    found = []
    if (power := choose_power(data.channels, data.samples, data.blocks)) is not None:
        # How it was read stands in the fingerprint.
        name = power.method.split(" (")[0]
        found.append(_trace(name, "mW", source, power.t_ns, power.mw, start_ns))
    for kind in ("temperature", "frequency"):
        sampled = [
            c
            for c in data.channels
            if c.kind == kind and c.channel in data.samples and len(data.samples[c.channel].t_ns)
        ]
        if kind == "frequency":
            sampled = [c for c in sampled if c.site == "npu"]
        if sampled:
            channel = max(sampled, key=lambda c: _peak(data, c))
            samples = data.samples[channel.channel]
            name = f"{channel.name}, hottest" if kind == "temperature" else channel.name
            found.append(_trace(name, channel.unit, source, samples.t_ns, samples.value, start_ns))
    return tuple(found)


def _peak(data: RunData, channel: Channel) -> float:
    return float(data.samples[channel.channel].value.max())


def _trace(
    name: str, unit: str, source: Provenance, t_ns: Any, values: Any, start_ns: int
) -> Trace:
    t_s, kept = envelope(
        (np.asarray(t_ns) - start_ns) * _NS, np.asarray(values, np.float64), _TRACE_BUCKETS
    )
    return Trace(name, unit, source, t_s, kept, len(t_ns))


def _devices(store: Store, session_id: str) -> list[DeviceRow]:
    rows = store.table("SELECT * FROM devices WHERE session_id = ?", [session_id]).to_pylist()
    return [DeviceRow(**row) for row in rows]


def _stages(store: Store, run_ids: Sequence[str]) -> tuple[Stage, ...]:
    """Seconds per stage, over all runs of the report, in the order of the work."""
    marks = ", ".join("?" * len(run_ids))
    rows = store.table(
        f"SELECT stage, sum(seconds) AS seconds FROM stages WHERE run_id IN ({marks}) "
        "GROUP BY stage HAVING sum(seconds) > 0 ORDER BY min(rowid)",
        list(run_ids),
    ).to_pylist()
    words = {
        "evaluate_ort": "accuracy in onnxruntime",
        "evaluate_htp": "accuracy in the HTP emulator",
    }
    return tuple(Stage(words.get(row["stage"], row["stage"]), row["seconds"]) for row in rows)


def _settings(session: SessionRow, run: RunRow, description: Mapping[str, Any]) -> dict[str, str]:
    settings = {
        "command": session.command,
        "profile": session.profile,
        "HTP performance profile": run.perf_profile,
        "seed": str(session.seed),
        "qhost": session.host_version,
    }
    words = {"model": "device model", "build": "device build", "os": "device OS"}
    # The basis stands in the banner; what the HTP could do is not what it did.
    said = {k: v for k, v in description.items() if k not in ("emulation_basis", "perf_profiles")}
    settings |= {words.get(k, k): str(v) for k, v in said.items()}
    return {key: value for key, value in settings.items() if value}


def _matching(paths: Iterable[Path], wanted: set[str]) -> list[Artifact]:
    """Those of `paths` that are artifacts of the runs; one that is damaged is left out."""
    paths = list(paths)
    if not paths:
        return []
    # Imported where it is used: a report without artifacts needs no graph library.
    from quant.artifact import open_artifact

    found: list[Artifact] = []
    for path in paths:
        try:
            artifact = open_artifact(path)
        except UserError:
            continue  # the report is of the session; a foreign file beside it does not concern it
        if artifact.sha256 in wanted:
            found.append(artifact)
    return found


def _layers(artifact: Artifact) -> tuple[LayerRow, ...]:
    rows = json.loads(artifact.read("report/layers.json"))
    return tuple(
        LayerRow(
            row["name"],
            row["op_type"],
            f"w{row['bits']} {row['granularity']}",
            _finite(row["sqnr_db"]),
        )
        for row in rows
    )


def _finite(value: object) -> float | None:
    """The artifact writes inf (no error at all) as null or a word; neither can be drawn."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
