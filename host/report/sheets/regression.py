"""One session against an earlier one: what became worse, by how much, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

from host.errors import RunStatus, UserError
from host.measure import block_latency_us
from host.report.load import closest
from host.report.sheet import Sheet, Table, Value
from host.report.text import PROVENANCE_TEXT
from host.stats.intervals import LEVEL, Estimate
from host.stats.paired import ratio_independent
from host.store import Store
from host.store.rows import RunRow
from quant.figures import METRICS, Figure

# Compared by their own intervals; latency is compared block by block instead.
_METRICS = ("energy_mj", "power_mw", "model_size_bytes", "memory_mb", "startup_ms")

_COLUMNS = ("Variant", "Metric", "Before", "Now", "Change", "95 % interval", "Verdict")
_METHOD = (
    "Latency: ratio of the blocks of both sessions, exact Mann-Whitney interval. "
    "Others: worse or better when the two intervals do not overlap."
)


@dataclass(frozen=True)
class Change:
    """`ratio` is new / old; `verdict`: worse, better, same, or why there is none."""

    metric: str
    old: Figure | None
    new: Figure | None
    ratio: float | None
    interval: tuple[float, float] | None
    verdict: str


def regression(store: Store, session: str | None, baseline: str | None) -> Sheet:
    """Compare a session with `baseline`, or with the session before that shares runs with it.

    Raises:
        UserError: no such session, or none to compare with.
    """
    new = store.session(session or "latest")
    runs = [r for r in store.runs_of(new.session_id) if r.status is not RunStatus.SKIPPED]
    old_id = store.session(baseline).session_id if baseline else _before(store, new.session_id)
    if old_id == new.session_id:
        raise UserError("A session cannot be its own baseline.", "Name another with --baseline.")
    olds = {_key(run): run for run in store.runs_of(old_id)}
    pairs = [(olds[_key(run)], run) for run in runs if _key(run) in olds]
    if not pairs:
        raise UserError(
            f"Sessions {old_id} and {new.session_id} share no model, variant and device.",
            "Name another with --baseline.",
        )
    changed: list[tuple[Value, ...]] = []
    unchanged: list[tuple[Value, ...]] = []
    worse, better = [], []
    for old, run in pairs:
        for change in _changes(store, old, run):
            moved = change.verdict in ("worse", "better")
            (changed if moved else unchanged).append(_row(run, change))
            words = f"{run.variant}: {_label(change.metric)} {_percent(change)}"
            if change.verdict == "worse":
                worse.append(words)
            elif change.verdict == "better":
                better.append(words)
    missing = [run.variant for run in runs if _key(run) not in olds]
    notes = [f"Without a baseline: {', '.join(missing)}."] if missing else []
    return Sheet(
        "regression",
        "Regression",
        f"Session {new.session_id} against {old_id}",
        f"{_count(len(worse))} became worse." if worse else "Nothing became worse.",
        (*worse, *(f"{words} (better)" for words in better)),
        tuple(
            Table(title, _COLUMNS, tuple(rows), note)
            for title, rows, note in (
                ("Changed", changed, _METHOD),
                ("Not changed or not compared", unchanged, "" if changed else _METHOD),
            )
            if rows
        ),
        new.emulated,
        tuple(notes),
    )


def _count(number: int) -> str:
    return "One figure" if number == 1 else f"{number} figures"


def _before(store: Store, session_id: str) -> str:
    """The latest earlier session that ran one of the same model, variant and device."""
    keys = {_key(run) for run in store.runs_of(session_id)}
    ids = [s.session_id for s in store.sessions()]
    for other in ids[ids.index(session_id) + 1 :]:
        if keys & {_key(run) for run in store.runs_of(other)}:
            return other
    raise UserError(
        f"No session before {session_id} has the same model, variant and device.",
        "Name one with --baseline; `qhost query` lists the sessions.",
    )


def _key(run: RunRow) -> tuple[str, str, str, str]:
    return (run.model_name, run.variant, run.device, run.profile)


def _changes(store: Store, old: RunRow, new: RunRow) -> list[Change]:
    befores, _ = closest(store.figures_of(old.run_id))
    nows, _ = closest(store.figures_of(new.run_id))
    found = []
    for metric in ("accuracy", "latency_ms", *_METRICS):
        before, now = befores.get(metric), nows.get(metric)
        if before is None and now is None:
            continue
        if refusal := _refusal(before, now):
            found.append(Change(metric, before, now, None, None, refusal))
        elif metric == "latency_ms":
            found.append(_latency(store, old, new, before, now))
        else:
            found.append(_by_intervals(metric, before, now, new))
    return found


def _refusal(before: Figure | None, now: Figure | None) -> str:
    """Why two figures cannot be compared; empty when they can."""
    if before is None or before.value is None:
        return "no figure before"
    if now is None or now.value is None:
        return "no figure now"
    if before.provenance is not now.provenance:
        a, b = (PROVENANCE_TEXT[f.provenance].short for f in (before, now))
        return f"not compared: {a} before, {b} now"
    if not (before.valid and now.valid):
        return "not compared: " + (now.reason if not now.valid else before.reason)
    return ""


def _latency(
    store: Store, old: RunRow, new: RunRow, before: Figure | None, now: Figure | None
) -> Change:
    blocks = [store.run_data(run.run_id).blocks for run in (new, old)]
    values, base = ([block_latency_us(block) for block in part] for part in blocks)
    if min(len(values), len(base)) < 2:
        return _by_intervals("latency_ms", before, now, new)
    ratio: Estimate = ratio_independent(values, base, LEVEL)
    verdict = "same"
    if ratio.excludes(1.0):
        verdict = "worse" if ratio.value > 1 else "better"
    return Change("latency_ms", before, now, ratio.value, (ratio.low, ratio.high), verdict)


def _by_intervals(metric: str, before: Figure | None, now: Figure | None, run: RunRow) -> Change:
    assert before is not None and before.value is not None
    assert now is not None and now.value is not None
    ratio = now.value / before.value if before.value else None
    a, b = _ends(before), _ends(now)
    verdict = "same"
    if a[1] < b[0] or b[1] < a[0]:
        better = run.accuracy_higher_is_better if metric == "accuracy" else False
        grew = b[0] > a[1]
        verdict = "better" if grew == bool(better) else "worse"
    return Change(metric, before, now, ratio, None, verdict)


def _ends(figure: Figure) -> tuple[float, float]:
    assert figure.value is not None
    if figure.ci_low is None or figure.ci_high is None:
        return figure.value, figure.value
    return figure.ci_low, figure.ci_high


def _label(metric: str) -> str:
    return METRICS[metric].label if metric in METRICS else metric


def _percent(change: Change) -> str:
    return "" if change.ratio is None else f"{(change.ratio - 1) * 100:+.1f} %"


def _row(run: RunRow, change: Change) -> tuple[Value, ...]:
    interval = ""
    if change.interval is not None and all(abs(end) < 1e9 for end in change.interval):
        low, high = ((end - 1) * 100 for end in change.interval)
        interval = f"{low:+.1f} to {high:+.1f} %"
    return (
        run.variant,
        _label(change.metric),
        change.old,
        change.new,
        _percent(change),
        interval,
        change.verdict,
    )
