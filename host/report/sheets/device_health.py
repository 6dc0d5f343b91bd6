"""Devices over all sessions of a database: failures, throttling, goldens, heat, changes."""

from __future__ import annotations

import json
from typing import Any

from host.errors import UserError
from host.report.sheet import Sheet, Table, Value
from host.store import Store
from quant.figures import METRICS, Figure, Provenance

_DEVICES = """
SELECT d.device_serial, max(d.device) AS device, max(d.soc) AS soc, bool_or(d.emulated) AS emulated,
       count(*) AS sessions, max(s.created_at) AS last_seen
FROM devices d JOIN sessions s USING (session_id)
GROUP BY d.device_serial ORDER BY last_seen DESC, d.device_serial
"""
_RUNS = """
SELECT device_serial, status, coalesce(failure_class, '') AS failure_class, count(*) AS runs
FROM runs GROUP BY ALL
"""
_BLOCKS = """
SELECT device_serial, count(*) AS blocks, count(*) FILTER (throttled) AS throttled
FROM blocks JOIN runs USING (run_id) GROUP BY device_serial
"""
_GOLDENS = """
SELECT device_serial, count(*) AS checks, count(*) FILTER (NOT bit_equal) AS inexact,
       min(sqnr_db) AS worst
FROM goldens JOIN runs USING (run_id) GROUP BY device_serial
"""
_HEAT = """
SELECT device_serial, max(value) AS hottest, arg_max(provenance, value) AS provenance,
       count(*) AS n
FROM figures JOIN runs USING (run_id)
WHERE metric = 'max_temperature_c' AND value IS NOT NULL GROUP BY device_serial
"""
_BUILDS = """
SELECT d.device_serial, s.created_at, d.description_json
FROM devices d JOIN sessions s USING (session_id) ORDER BY s.created_at
"""
_FAILURES = """
SELECT device_serial, created_at, variant, failure_class, message
FROM runs WHERE status IN ('failed', 'invalid') ORDER BY created_at DESC LIMIT 20
"""


def device_health(store: Store, session: str | None, baseline: str | None) -> Sheet:
    """Every device of the database, or those of one session. Raises UserError: no device."""
    del baseline
    devices = store.table(_DEVICES).to_pylist()
    only: set[str] | None = None
    if session is not None:
        session_id = store.session(session).session_id
        only = {run.device_serial for run in store.runs_of(session_id)}
        devices = [d for d in devices if d["device_serial"] in only]
    if not devices:
        raise UserError(f"{store.path} knows no device.", "Run `qhost bench` first.")
    runs = store.table(_RUNS).to_pylist()
    blocks = _by_serial(store, _BLOCKS)
    goldens = _by_serial(store, _GOLDENS)
    heat = _by_serial(store, _HEAT)
    rows = tuple(_row(d, runs, blocks, goldens, heat) for d in devices)
    findings = [f for d in devices for f in _findings(d, runs, blocks)]
    changes = _changes(store, only)
    failures = tuple(
        (r["created_at"], r["device_serial"], r["variant"], r["failure_class"] or "", r["message"])
        for r in store.table(_FAILURES).to_pylist()
        if only is None or r["device_serial"] in only
    )
    tables = [
        Table(
            "Devices",
            (
                "Device",
                "Sessions",
                "Last seen (UTC)",
                "Runs ok / failed / invalid",
                "Throttled blocks",
                "Goldens not bit-equal",
                "Hottest zone",
            ),
            rows,
        )
    ]
    if changes:
        tables.append(
            Table("Changes", ("Seen (UTC)", "Device", "What", "Before", "After"), changes)
        )
    if failures:
        tables.append(
            Table("Latest failures", ("Time (UTC)", "Device", "Variant", "Class", "Why"), failures)
        )
    return Sheet(
        "device_health",
        "Device health",
        f"{'One device' if len(devices) == 1 else f'{len(devices)} devices'} in {store.path.name}",
        "Needs a look." if findings else "Nothing to report: no failure, no throttling.",
        tuple(findings),
        tuple(tables),
        any(d["emulated"] for d in devices),
    )


def _by_serial(store: Store, sql: str) -> dict[str, dict[str, Any]]:
    return {row["device_serial"]: row for row in store.table(sql).to_pylist()}


def _count(runs: list[dict[str, Any]], serial: str, status: str) -> int:
    return sum(
        row["runs"] for row in runs if row["device_serial"] == serial and row["status"] == status
    )


def _row(
    device: dict[str, Any],
    runs: list[dict[str, Any]],
    blocks: dict[str, dict[str, Any]],
    goldens: dict[str, dict[str, Any]],
    heat: dict[str, dict[str, Any]],
) -> tuple[Value, ...]:
    serial = device["device_serial"]
    block, golden, hot = blocks.get(serial), goldens.get(serial), heat.get(serial)
    counts = [str(_count(runs, serial, status)) for status in ("ok", "failed", "invalid")]
    return (
        device_name(device),
        device["sessions"],
        device["last_seen"],
        " / ".join(counts),
        f"{block['throttled']} of {block['blocks']}" if block else None,
        f"{golden['inexact']} of {golden['checks']}, worst {golden['worst']:.0f} dB"
        if golden and golden["inexact"]
        else None,
        Figure(
            "max_temperature_c",
            hot["hottest"],
            METRICS["max_temperature_c"].unit,
            Provenance(hot["provenance"]),
            hot["n"],
        )
        if hot
        else None,
    )


def device_name(device: dict[str, Any]) -> str:
    """Label, SoC and serial, none of them twice."""
    words = [device["device"]]
    words += [w for w in (device["soc"], device["device_serial"]) if w not in device["device"]]
    return " ".join(words)


def _findings(
    device: dict[str, Any],
    runs: list[dict[str, Any]],
    blocks: dict[str, dict[str, Any]],
) -> list[str]:
    serial = device["device_serial"]
    found = []
    classes = {
        row["failure_class"]: row["runs"]
        for row in runs
        if row["device_serial"] == serial and row["status"] == "failed"
    }
    # A user's mistake says nothing about the device.
    classes.pop("USER_ERROR", None)
    if classes:
        words = ", ".join(f"{count} {name}" for name, count in sorted(classes.items()))
        found.append(f"{serial}: failed runs: {words}.")
    if invalid := _count(runs, serial, "invalid"):
        found.append(
            f"{serial}: {invalid} {'run' if invalid == 1 else 'runs'} with figures that may not "
            "be used."
        )
    block = blocks.get(serial)
    if block and block["throttled"]:
        share = block["throttled"] / block["blocks"]
        found.append(f"{serial}: throttled in {share:.0%} of its blocks; let it cool longer.")
    return found


def _changes(store: Store, only: set[str] | None) -> tuple[tuple[Value, ...], ...]:
    """What a device said of itself differently than in its session before."""
    last: dict[str, dict[str, str]] = {}
    rows: list[tuple[Value, ...]] = []
    for row in store.table(_BUILDS).to_pylist():
        serial = row["device_serial"]
        if only is not None and serial not in only:
            continue
        now = {k: str(v) for k, v in json.loads(row["description_json"]).items()}
        before = last.get(serial)
        if before is not None:
            rows += [
                (row["created_at"], serial, key, before.get(key, ""), now.get(key, ""))
                for key in sorted({*before, *now})
                if before.get(key) != now.get(key)
            ]
        last[serial] = now
    return tuple(rows)
