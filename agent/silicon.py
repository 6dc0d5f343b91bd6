"""A real device as a Platform: its own clock, its files, and the HTP through a runtime.

`identify` says SILICON only when everything fits: an aarch64 processor, a soc_id of the table, a
device node of the DSP, and none of the marks that emulators carry. Anything else is no silicon.
"""

from __future__ import annotations

import contextlib
import os
import platform as machine
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent import fingerprint
from agent.charging import Charger
from agent.emulator.phone import emulated_phone
from agent.platform import Report, Sink, Watch
from agent.runtime import ChildRuntime, Runtime, Stop
from agent.runtime.ort_qnn import PERF_PROFILES
from agent.sampler import SamplerProcess, quiet_cpu
from agent.sensors import discover
from agent.sensors.channel import Spec, read_int, read_text
from agent.sensors.dumpsys import Run, run_command
from agent.sensors.system import ProcessMemory, process_memory
from agent.socs import SOCS, by_soc_id
from protos import agent_pb2 as pb

_IDLE_PIECE_S = 0.05
_NOT_SILICON = "no figure here is of a Snapdragon's own processor and DSP"
# FastRPC: one node per domain on newer kernels, one for all of them on Android's older ones.
_DSP_NODES = ("fastrpc-cdsp", "fastrpc-cdsp-secure", "adsprpc-smd", "adsprpc-smd-secure")


@dataclass(frozen=True)
class Identity:
    """What a device says it is. `problem`: why it is no silicon; empty when it is."""

    soc: str
    serial: str
    model: str
    build: str
    os: str  # android, linux
    problem: str

    @property
    def silicon(self) -> bool:
        return not self.problem


def identify(
    device_root: Path, cpu: str | None = None, getprop: Run | None = None
) -> Identity | None:
    """The Snapdragon whose files are under `device_root`, or None where it is none we know.

    `cpu`: the processor as uname says it. `getprop`: how to ask Android for a property; None on
    Linux.
    """
    soc = by_soc_id(read_int(device_root / "sys/devices/soc0/soc_id") or -1)
    if soc is None and getprop is not None:  # some builds hide the file from their shell user
        named = (getprop(("getprop", "ro.soc.model")) or "").strip().lower()
        soc = named if named in SOCS else None
    if soc is None:
        return None
    problem = _problem(device_root, cpu or machine.machine(), getprop)
    if getprop is not None:
        names = ("ro.serialno", "ro.product.model", "ro.build.fingerprint")
        serial, model, build = ((getprop(("getprop", name)) or "").strip() for name in names)
        model = model or SOCS[soc].name
        return Identity(soc, serial or "unknown", model, build, "android", problem)
    tree = device_root / "proc/device-tree"
    release = (read_text(device_root / "etc/os-release") or "").splitlines()
    facts = dict(line.partition("=")[::2] for line in release)
    return Identity(
        soc=soc,
        serial=_node(tree / "serial-number")
        or (read_text(device_root / "etc/machine-id") or "unknown")[:16],
        model=_node(tree / "model") or SOCS[soc].name,
        build=facts.get("PRETTY_NAME", "").strip('"'),
        os="linux",
        problem=problem,
    )


def _problem(device_root: Path, cpu: str, getprop: Run | None) -> str:
    """The first thing that keeps this from being a Snapdragon with its DSP."""
    if emulated_phone(device_root) is not None:
        return "it is an emulated device"
    if cpu != "aarch64":
        return f"its processor is {cpu}, not aarch64"
    if not any(_exists(device_root / "dev" / name) for name in _DSP_NODES):
        return f"there is no device node of the DSP (/dev/{_DSP_NODES[0]})"
    if (read_text(Path("/proc/self/comm")) or "").startswith("qemu"):
        return "this program runs through qemu, not on an aarch64 processor"
    if getprop is not None and any(
        (getprop(("getprop", name)) or "").strip() == "1"
        for name in ("ro.boot.qemu", "ro.kernel.qemu")
    ):
        return "it is Android's own emulator"
    return ""


def _exists(path: Path) -> bool:
    """Also true for a node that this user may not even look at."""
    try:
        path.lstat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def android_properties() -> Run | None:
    """How to ask this device for properties; None where it is no Android."""
    return run_command if shutil.which("getprop") else None


class SiliconPlatform:
    """Platform protocol over the device that this process runs on.

    `facts`: of the runtime, for the fingerprint. `basis`: what an emulated device's figures are
    made of.
    """

    def __init__(
        self,
        identity: Identity,
        root: Path,
        device_root: Path,
        runtime: ChildRuntime,
        facts: Mapping[str, str],
        basis: str = "",
    ) -> None:
        self._identity = identity
        self._facts = facts
        self._basis = basis or f"{_NOT_SILICON}: {identity.problem}"
        self._device_root = device_root
        run: Run | None = run_command if shutil.which("dumpsys") else None
        self._run = run
        found = discover(device_root, run=run)
        self._channels, self._denied = found.channels, found.denied
        self._watch = Watch(self._channels)
        self._runtime = runtime
        self._sampler: SamplerProcess | None = None
        self.charger = Charger(device_root, root / "charger.json", run=run)

    def description(self) -> pb.Description:
        identity = self._identity
        soc = SOCS[identity.soc]
        return pb.Description(
            substrate=pb.SILICON if identity.silicon else pb.EMULATED,
            emulation_basis="" if identity.silicon else self._basis,
            device=pb.DeviceIdentity(
                serial=identity.serial,
                model=identity.model,
                soc=identity.soc,
                soc_model=soc.soc_model,
                htp_arch=soc.htp_arch,
                build=identity.build,
                os=identity.os,
            ),
            channels=[ch.spec.to_proto(i) for i, ch in enumerate(self._channels, 1)],
            runtimes=[self._runtime.name],
            fingerprint={
                **fingerprint.read(self._device_root, self._run),
                **self._facts,
                "build": identity.build,
                "perf_profiles": ",".join(PERF_PROFILES),
                "denied": ",".join(self._denied),
                "charging": self.charger.status(),
                "wake_lock": self._wake_lock(),
            },
        )

    @property
    def soc(self) -> str:
        return self._identity.soc

    @property
    def soc_model(self) -> int:
        return SOCS[self._identity.soc].soc_model

    def now_ns(self) -> int:
        return time.monotonic_ns()

    clock_ns = now_ns

    @contextmanager
    def active(self) -> Iterator[None]:
        """A wake lock where the kernel has one: a device that falls asleep measures nothing."""
        name = f"qhost-{os.getpid()}"
        self._power("wake_lock", name)
        try:
            yield
        finally:
            self._power("wake_unlock", name)

    def idle(self, ns: int, stop: Stop) -> None:
        end = time.monotonic_ns() + ns
        while not stop() and (left := end - time.monotonic_ns()) > 0:
            time.sleep(min(left / 1e9, _IDLE_PIECE_S))

    def temperatures(self) -> list[tuple[Spec, float]]:
        return self._watch.temperatures()

    def throttling(self) -> bool:
        return self._watch.throttling()

    def model_memory(self) -> ProcessMemory | None:
        pid = self._runtime.pid
        return None if pid is None else process_memory(self._device_root, pid)

    def runtime(self) -> Runtime:
        return self._runtime

    @contextmanager
    def sampling(self, rate_hz: float, sink: Sink, report: Report) -> Iterator[None]:
        sampler = self._sampler = SamplerProcess(self._channels, rate_hz, sink)
        try:
            yield
        except BaseException:
            sampler.kill()
            raise
        report(sampler.stop())

    def kill_children(self) -> None:
        self._runtime.kill()
        if self._sampler is not None:
            self._sampler.kill()

    def _wake_lock(self) -> str:
        allowed = os.access(self._device_root / "sys/power/wake_lock", os.W_OK)
        return "taken while a segment runs" if allowed else "not permitted"

    def _power(self, node: str, name: str) -> None:
        with contextlib.suppress(OSError):
            (self._device_root / "sys/power" / node).write_text(name)


def inference_cpus() -> frozenset[int] | None:
    """All cores but the sampler's, where that leaves more than one."""
    allowed = os.sched_getaffinity(0) - {quiet_cpu()}
    return frozenset(allowed) if len(allowed) > 1 else None


def _node(path: Path) -> str:
    """A device tree string: ends with a zero byte."""
    return (read_text(path) or "").rstrip("\0")
