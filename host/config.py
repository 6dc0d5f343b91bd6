"""Settings: flags > QHOST_* environment > qhost.toml > defaults, each value with its source."""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from host.errors import UserError, unknown_name

CONFIG_FILE = "qhost.toml"


@dataclass(frozen=True)
class Setting:
    """One row of SETTINGS. `default` None means: decided later from other settings."""

    name: str
    kind: type
    default: Any
    help: str
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf

    @property
    def env(self) -> str:
        return "QHOST_" + self.name.upper()

    def out_of_range(self, value: Any) -> str:
        """What is wrong with a number of this setting; empty where nothing is, and for a text."""
        if self.kind not in (int, float):
            return ""
        if not math.isfinite(value):
            return "is not a finite number"
        if value <= self.above:
            return f"is not above {self.above:g}"
        if value < self.least:
            return f"is below {self.least:g}"
        return f"is above {self.most:g}" if value > self.most else ""


SETTINGS: dict[str, Setting] = {
    s.name: s
    for s in (
        Setting("device", str, None, "serial, SoC id (sm8650) or emulated:<soc>"),
        Setting("mock", bool, False, "run on emulated:<soc> without adb"),
        Setting("methods", str, "all", "methods grammar, e.g. int8,int4+sparse[sparsity=0.5]"),
        Setting("profile", str, None, "rapid, quick, normal or sustained"),
        Setting("perf_profile", str, None, "the HTP's performance profile (the artifact's: burst)"),
        Setting("db_path", Path, None, "DuckDB file (qhost.duckdb; with --mock qhost-mock.duckdb)"),
        Setting("output_dir", Path, Path("qhost-out"), "where reports and artifacts are written"),
        Setting("cache_dir", Path, None, "artifacts cached by content (~/.cache/qhost)"),
        Setting("emulator_samples", int, 256, "labelled samples run in the HTP emulator", least=1),
        Setting(
            "device_accuracy", int, 0, "labelled samples run on the device itself; 0: none", least=0
        ),
        Setting("seed", int, 0, "seed of the block order and of resampling"),
        Setting(
            "time_factor",
            float,
            None,
            "device seconds per wall second of an emulated device",
            above=0,
        ),
        Setting(
            "sample_rate_hz", float, 100.0, "sampling rate of fast sensors", above=0, most=1000
        ),
        Setting(
            "cooldown_timeout", float, None, "seconds to wait for cooling; 0: no gate", least=0
        ),
        Setting("max_temperature", str, "", "degrees C that fail a run: npu=95,skin=43"),
        Setting("stop_charging", bool, False, "cut the charger while measuring"),
        Setting("per_op", bool, False, "cycles per operator, in a pass of their own"),
        Setting("meter", str, "", "external power meter: NAME[:key=value,...]"),
    )
}


@dataclass(frozen=True)
class Resolved:
    value: Any
    source: str  # "flag", "environment QHOST_X", "<path>", "default"


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
}


def _parse(setting: Setting, raw: Any, source: str) -> Any:
    try:
        if setting.kind is bool and isinstance(raw, str):
            lowered = raw.strip().lower()
            if lowered not in {"1", "0", "true", "false", "yes", "no", "on", "off"}:
                raise ValueError(raw)
            return lowered in {"1", "true", "yes", "on"}
        if setting.kind is bool and not isinstance(raw, bool):
            raise ValueError(raw)
        if setting.kind is not bool and isinstance(raw, bool):
            raise ValueError(raw)
        if setting.kind is int and isinstance(raw, float):  # int() would cut 2.5 to 2
            raise ValueError(raw)
        if setting.kind is str and not isinstance(raw, str):  # a list, a date
            raise ValueError(raw)
        value = setting.kind(raw)
    except (TypeError, ValueError):
        raise UserError(
            f"{setting.name} = {raw!r} from {source} is not {_KINDS[setting.kind]}.",
            f"It means: {setting.help}.",
        ) from None
    if problem := setting.out_of_range(value):
        raise UserError(
            f"{setting.name} = {raw!r} from {source} {problem}.", f"It means: {setting.help}."
        )
    return value


def find_config_file(start: Path) -> Path | None:
    """qhost.toml in `start` or the nearest folder above it."""
    for folder in (start, *start.parents):
        if (folder / CONFIG_FILE).is_file():
            return folder / CONFIG_FILE
    return None


def _read_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise UserError(f"{path} cannot be read as TOML: {e}.", "Mend or remove it.") from None
    for name in table:
        if name not in SETTINGS:
            raise unknown_name(f"setting in {path}", name, SETTINGS)
    return table


def resolve(
    flags: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> dict[str, Resolved]:
    """Every setting with its value and where it came from. A flag of None was not given."""
    environ = os.environ if environ is None else environ
    path = find_config_file(cwd or Path.cwd())
    table = _read_file(path)
    out: dict[str, Resolved] = {}
    for name, setting in SETTINGS.items():
        flag = (flags or {}).get(name)
        if flag is not None:
            out[name] = Resolved(_parse(setting, flag, "the command line"), "flag")
        elif environ.get(setting.env):
            source = f"environment {setting.env}"
            out[name] = Resolved(_parse(setting, environ[setting.env], source), source)
        elif name in table:
            out[name] = Resolved(_parse(setting, table[name], str(path)), str(path))
        else:
            out[name] = Resolved(setting.default, "default")
    return out


def cache_dir(configured: Path | None, environ: Mapping[str, str] | None = None) -> Path:
    """The cache folder: as configured, else $XDG_CACHE_HOME/qhost, else ~/.cache/qhost."""
    if configured is not None:
        return configured
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "qhost"
