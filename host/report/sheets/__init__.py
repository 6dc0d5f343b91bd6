"""The reports made of tables: one module and one row each."""

from __future__ import annotations

from collections.abc import Callable

from host.report.sheet import Sheet
from host.report.sheets.device_health import device_health
from host.report.sheets.energy import energy
from host.report.sheets.regression import regression
from host.store import Store

# (store, session or None for the latest, baseline session or None) -> sheet.
KINDS: dict[str, Callable[[Store, str | None, str | None], Sheet]] = {
    "device_health": device_health,
    "regression": regression,
    "energy": energy,
}

__all__ = ["KINDS"]
