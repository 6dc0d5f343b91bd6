"""Compile options of the HTP, validated by name and value.

onnxruntime-qnn ignores an option it does not know and most values it does not understand, so a
typing error would silently give the default. Nothing reaches the provider that is not checked
here first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from quant.errors import UserError, unknown_name
from quant.htp.soc import SOCS, Soc

PERF_PROFILES = (
    "burst",
    "sustained_high_performance",
    "high_performance",
    "default",
    "balanced",
    "low_balanced",
    "high_power_saver",
    "power_saver",
    "low_power_saver",
    "extreme_power_saver",
)
# Profiles in which the HTP keeps one clock; in the others DCVS may change it. Source:
# the power configurations of onnxruntime's QNN provider (dcvsEnable by performance mode).
FIXED_CLOCK = ("burst", "high_performance", "sustained_high_performance")
PRIORITIES = ("low", "normal", "normal_high", "high")

# The provider's names for our options; both are understood.
_ALIASES = {
    "htp_graph_finalization_optimization_mode": "finalization_mode",
    "qnn_context_priority": "priority",
    "enable_htp_spill_fill_buffer": "spill_fill_buffer",
    "enable_htp_fp16_clamp_overflow": "fp16_clamp_overflow",
    "enable_htp_monolithic_lstm": "monolithic_lstm",
    "htp_bf16_enable": "bf16",
}

# Options the provider has, or seems to have, and why they are not accepted.
_REFUSED = {
    "enable_htp_weight_sharing": "this toolchain does not have it and would ignore it",
    "enable_htp_graph_splitting": "it fails on the host compiler",
    "enable_htp_shared_memory_allocator": "it is a run-time setting of a real device",
    "htp_share_resource_optimization": "it fails on the host compiler",
    "device_id": "the compiler has one device, chosen by --device",
    "backend_type": "qhost always compiles for the HTP",
    "backend_path": "qhost always compiles for the HTP",
    "enable_htp_fp16_precision": "float graphs run as fp16 on the HTP either way",
    "offload_graph_io_quantization": "it would leave quantization of the graph's inputs and "
    "outputs on the CPU, which strict compilation forbids",
    "htp_performance_mode": "it is a run-time setting; give --perf-profile",
    "rpc_control_latency": "it is a run-time setting; give --perf-profile",
}


@dataclass(frozen=True)
class RunSettings:
    """How the device should run the context: kept in the artifact, applied by the agent.

    perf_profile: HTP performance profile. rpc_polling_us, rpc_control_latency_us: 0 leaves the
    runtime's own. dcvs: whether the HTP may change its clock while it runs, which no runtime here
    takes as a setting of its own: it follows from the profile.
    """

    perf_profile: str = "burst"
    rpc_polling_us: int = 0
    rpc_control_latency_us: int = 0
    dcvs: bool = field(init=False)

    def __post_init__(self) -> None:
        if self.perf_profile not in PERF_PROFILES:
            raise unknown_name("performance profile", self.perf_profile, PERF_PROFILES)
        object.__setattr__(self, "dcvs", self.perf_profile not in FIXED_CLOCK)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunSettings:
        """The run settings of a manifest."""
        return cls(**{k: v for k, v in values.items() if k != "dcvs"})


@dataclass(frozen=True)
class HtpOptions:
    """What changes the context binary. The defaults are the compiler's own.

    finalization_mode: effort of graph finalization, 0 (default) to 3; 3 is not always best.
    vtcm_mb: VTCM the graph may use, in MiB; 0 leaves it to the compiler, which plans with all.
    priority: scheduling priority of the context on the device.
    spill_fill_buffer: let contexts loaded together share one spill buffer.
    """

    finalization_mode: int = 0
    vtcm_mb: int = 0
    priority: str = "normal"
    spill_fill_buffer: bool = False
    fp16_clamp_overflow: bool = False
    monolithic_lstm: bool = False
    extended_udma: bool = False
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.finalization_mode not in range(4):
            raise UserError(
                f"finalization_mode {self.finalization_mode} does not exist.",
                "Give 0 (the compiler's default), 1, 2 or 3.",
            )
        if self.vtcm_mb < 0:
            raise UserError(f"vtcm_mb {self.vtcm_mb} is negative.", "Give MiB, or 0 for all.")
        if self.priority not in PRIORITIES:
            raise unknown_name("context priority", self.priority, PRIORITIES)

    def check(self, soc: Soc) -> None:
        """Raise UserError where `soc` cannot do what is asked."""
        if self.vtcm_mb > soc.vtcm_mb:
            raise UserError(
                f"vtcm_mb {self.vtcm_mb} is more than {soc.id} has ({soc.vtcm_mb} MB).",
                f"Give at most {soc.vtcm_mb}, or 0 for all.",
            )
        if self.bf16 and not soc.bf16:
            why = (
                f"it has v{soc.arch} and bf16 begins with v81"
                if soc.arch < 81
                else f"the toolchain accepts it from soc_model 88 on, not for {soc.soc_model}"
            )
            raise UserError(f"bf16 is not possible on {soc.id}: {why}.", "Leave bf16 out.")
        if self.extended_udma and soc.arch < 81:
            raise UserError(
                f"extended_udma is not possible on {soc.id}: it needs v81, not v{soc.arch}.",
                "Leave extended_udma out.",
            )

    def provider_options(self) -> dict[str, str]:
        """The options as onnxruntime-qnn spells them; defaults are left out."""
        out: dict[str, str] = {}
        if self.finalization_mode:
            out["htp_graph_finalization_optimization_mode"] = str(self.finalization_mode)
        if self.vtcm_mb:
            out["vtcm_mb"] = str(self.vtcm_mb)
        if self.priority != "normal":
            out["qnn_context_priority"] = self.priority
        for flag, name in (
            (self.spill_fill_buffer, "enable_htp_spill_fill_buffer"),
            (self.fp16_clamp_overflow, "enable_htp_fp16_clamp_overflow"),
            (self.monolithic_lstm, "enable_htp_monolithic_lstm"),
            (self.extended_udma, "extended_udma"),
            (self.bf16, "htp_bf16_enable"),
        ):
            if flag:
                out[name] = "1"
        return out

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> HtpOptions:
        """Options from names and values (strings, or JSON values of a manifest).

        Raises UserError for a name that is unknown, or known and without effect, and for a value
        that does not fit.
        """
        types = {f.name: type(f.default) for f in fields(cls)}
        out: dict[str, Any] = {}
        for given, value in values.items():
            name = _ALIASES.get(given, given)
            if name in ("htp_arch", "soc_model"):
                raise _target_given_as_option(name, str(value))
            if name in _REFUSED:
                raise UserError(f"Compile option {given!r}: {_REFUSED[name]}.", "Leave it out.")
            if name not in types:
                raise unknown_name("compile option", given, types)
            out[name] = _convert(given, value, types[name])
        return cls(**out)


def parse_assignments(items: list[str]) -> HtpOptions:
    """HtpOptions from `name=value` strings of a command line."""
    values: dict[str, object] = {}
    for item in items:
        name, eq, value = item.partition("=")
        if not eq:
            raise UserError(f"Compile option {item!r} has no value.", "Write it as name=value.")
        values[name.strip()] = value.strip()
    return HtpOptions.parse(values)


def _convert(name: str, value: object, kind: type) -> object:
    text = str(value).strip().lower()
    if kind is bool and text in ("1", "true", "yes", "on"):
        return True
    if kind is bool and text in ("0", "false", "no", "off"):
        return False
    if kind is int:
        try:
            return int(text)
        except ValueError:
            pass
    if kind is str:
        return text
    want = "true or false" if kind is bool else "a whole number"
    raise UserError(f"Compile option {name}={value}: not a value.", f"Give {want}.")


def _target_given_as_option(name: str, value: str) -> UserError:
    known = {str(s.arch if name == "htp_arch" else s.soc_model): s.id for s in SOCS.values()}
    if value.lstrip("v") in known:
        return UserError(
            f"{name} is not a compile option: the SoC decides it.",
            f"Give --device {known[value.lstrip('v')]}.",
        )
    return UserError(
        f"{name} {value} does not exist.",
        f"Known: {', '.join(sorted(known, key=int))}; choose the SoC with --device.",
    )
