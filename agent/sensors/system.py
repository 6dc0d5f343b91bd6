"""Clocks and memory: cpufreq, GPU and DDR clocks, meminfo, smaps_rollup, DMA buffers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from agent.sensors.channel import Channel, FileChannel, Scaled, Spec, read_int, read_text
from protos import agent_pb2 as pb

CLOCK_HZ = 10.0
MEMORY_HZ = 1.0
# (name, site, node, factor to MHz, unit of the node). Phones show no clock of the NPU.
_CLOCKS = (
    ("gpu_clock", "gpu", "sys/class/kgsl/kgsl-3d0/gpuclk", 1e-6, "Hz"),
    ("ddr_clock", "ddr", "sys/devices/system/cpu/bus_dcvs/DDR/cur_freq", 1e-3, "kHz"),
)
# devfreq devices by name; others are buses whose figure is a bandwidth or a vote, not a clock.
_DEVFREQ = (
    (re.compile(r"npu|nsp|(^|[-_.:,])cdsp[-_]?(clk|core)?$", re.IGNORECASE), "npu"),
    (re.compile(r"^\d+\.(qcom,)?kgsl|\.gpu$", re.IGNORECASE), "gpu"),
)


@dataclass(frozen=True)
class Kilobytes:
    """A parser for one `Field:   1234 kB` line, in bytes."""

    field: bytes

    def __call__(self, data: bytes) -> float | None:
        start = data.find(self.field + b":")
        if start < 0:
            return None
        try:
            return float(int(data[start + len(self.field) + 1 :].split(None, 1)[0]) * 1024)
        except (ValueError, IndexError):
            return None


def dma_buffer_bytes(root: Path, pid: int) -> int:
    """Bytes of the DMA buffers that a process holds by descriptor, each buffer counted once.

    PSS misses them: the HTP's weights and tensors live there. `/proc/<pid>/fdinfo/<fd>` of a
    dma-buf has `size:`, `exp_name:` and (since Linux 5.x) the inode that tells buffers apart.
    """
    sizes: dict[str, int] = {}
    try:
        entries = list((root / f"proc/{pid}/fdinfo").iterdir())
    except OSError:
        return 0
    for entry in entries:
        fields = dict(
            line.split(":", 1) for line in (read_text(entry) or "").splitlines() if ":" in line
        )
        if "exp_name" in fields and fields.get("size", "").strip().isdigit():
            sizes[fields.get("ino", entry.name).strip()] = int(fields["size"])
    return sum(sizes.values())


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of one process. `peak_pages`: the kernel's high-water mark of its resident pages,
    which no polling can miss; `pages` where it does not say."""

    pages: int
    peak_pages: int
    dma_buffers: int


def process_memory(root: Path, pid: int) -> ProcessMemory | None:
    """Memory of a process now; None where it may not be read or is gone."""
    rollup = read_text(root / f"proc/{pid}/smaps_rollup")
    pages = Kilobytes(b"Pss")(rollup.encode()) if rollup else None
    if pages is None:
        return None
    status = read_text(root / f"proc/{pid}/status") or ""
    peak = Kilobytes(b"VmHWM")(status.encode()) or pages
    return ProcessMemory(int(pages), int(max(peak, pages)), dma_buffer_bytes(root, pid))


def clocks(root: Path) -> list[Channel]:
    """CPU policies, GPU, DDR, and what devfreq shows of known parts, in MHz."""
    nodes = [
        (f"cpu_{base.name}", "cpu", f"{base.relative_to(root)}/scaling_cur_freq", 1e-3, "kHz")
        for base in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*"))
    ]
    for base in sorted((root / "sys/class/devfreq").glob("*")):
        site = next((site for pattern, site in _DEVFREQ if pattern.search(base.name)), None)
        if site is not None:
            nodes.append((base.name, site, f"{base.relative_to(root)}/cur_freq", 1e-6, "Hz"))
    found: list[Channel] = []
    for name, site, path, factor, unit in (*nodes, *_CLOCKS):
        node = root / path
        if read_int(node) is None:
            continue
        spec = Spec(
            name=name,
            site=site,
            kind=pb.FREQUENCY,
            unit="MHz",
            method=f"{node.name}, {unit}",
            poll_hz=CLOCK_HZ,
            source=f"/{path}",
        )
        found.append(FileChannel(spec, node, Scaled(factor)))
    return found


def memory(root: Path) -> list[Channel]:
    """Memory left on the device. That of the process that runs the model has a pass of its own."""
    node, field = root / "proc/meminfo", b"MemAvailable"
    text = read_text(node)
    if not text or Kilobytes(field)(text.encode()) is None:
        return []
    spec = Spec(
        name="memory_available",
        site="soc",
        kind=pb.MEMORY,
        unit="bytes",
        method=f"{node.name} {field.decode()}",
        poll_hz=MEMORY_HZ,
        source="/proc/meminfo",
    )
    return [FileChannel(spec, node, Kilobytes(field), size=4096)]
