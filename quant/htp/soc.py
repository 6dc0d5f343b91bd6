"""The table of SoCs: what the compiler needs to know of a part, and what a device model does.

The figures and their sources are in soc.toml.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from quant.errors import UserError, unknown_name


@dataclass(frozen=True)
class Thermal:
    """Trip points in degrees Celsius and the names of the thermal zones they apply to."""

    npu_severe_c: float
    npu_shutdown_c: float
    skin_light_c: float
    skin_moderate_c: float
    skin_severe_c: float
    skin_critical_c: float
    skin_emergency_c: float
    skin_shutdown_c: float
    skin_zone: str
    npu_zones: tuple[str, ...]


@dataclass(frozen=True)
class Soc:
    """One Snapdragon part. `arch` is the Hexagon version (75 for v75), memory sizes in MiB."""

    id: str
    name: str
    soc_model: int
    arch: int
    vtcm_mb: int
    hvx_threads: int
    fp16: bool
    bf16: bool
    ddr_gb_per_s: float
    soc_ids: tuple[int, ...]
    latency_vs_sm8650: float
    ratio_n: int
    ratio_basis: str
    thermal: Thermal


def _read() -> tuple[dict[str, Soc], dict[str, str]]:
    text = resources.files("quant.htp").joinpath("soc.toml").read_text(encoding="utf-8")
    table: dict[str, dict[str, Any]] = tomllib.loads(text)
    refused: dict[str, str] = table.pop("refused")
    limits: dict[str, float] = table.pop("defaults")["thermal"]
    socs: dict[str, Soc] = {}
    for soc_id, row in table.items():
        thermal = Thermal(
            **limits, skin_zone=row.pop("skin_zone"), npu_zones=tuple(row.pop("npu_zones"))
        )
        row["soc_ids"] = tuple(row["soc_ids"])
        socs[soc_id] = Soc(id=soc_id, thermal=thermal, **row)
    return socs, refused


SOCS, _REFUSED = _read()


def get_soc(soc_id: str) -> Soc:
    """The part named `soc_id` (case is ignored).

    Raises UserError for an unknown name, naming the nearest, and for a part older than v68.
    """
    key = soc_id.strip().lower()
    if key in SOCS:
        return SOCS[key]
    if key in _REFUSED:
        raise UserError(
            f"{key} is too old: {_REFUSED[key]}; the HTP compiler starts at v68.",
            f"Supported: {', '.join(SOCS)}.",
        )
    raise unknown_name("SoC", soc_id, SOCS)


def soc_of_model(soc_model: int) -> Soc | None:
    """The part whose context binaries carry `soc_model`, or None where the table lacks it."""
    return next((s for s in SOCS.values() if s.soc_model == soc_model), None)
