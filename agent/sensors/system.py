"""Clocks and memory: cpufreq, /proc/meminfo, /proc/<pid>/smaps_rollup."""

from __future__ import annotations

from pathlib import Path

from agent.sensors.channel import Channel, Parse, Spec, read_int, read_text
from agent.sensors.power import scaled
from protos import agent_pb2 as pb

CLOCK_HZ = 10.0
# smaps_rollup walks every mapping of the process: rarely, and not in a timed pass at high rate.
MEMORY_HZ = 1.0


def kilobytes(field: bytes) -> Parse:
    """A parser for one `Field:   1234 kB` line, in bytes."""

    def parse(data: bytes) -> float | None:
        start = data.find(field + b":")
        if start < 0:
            return None
        try:
            return float(int(data[start + len(field) + 1 :].split(None, 1)[0]) * 1024)
        except (ValueError, IndexError):
            return None

    return parse


def cpu_clocks(root: Path) -> list[Channel]:
    """One channel per cpufreq policy, in MHz."""
    found = []
    for base in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*")):
        node = base / "scaling_cur_freq"
        if read_int(node) is None:
            continue
        spec = Spec(
            name=f"cpu_{base.name}",
            site="cpu",
            kind=pb.FREQUENCY,
            unit="MHz",
            method="cpufreq scaling_cur_freq, kHz",
            poll_hz=CLOCK_HZ,
            source=f"/{node.relative_to(root)}",
        )
        found.append(Channel(spec, node, scaled(1e-3)))
    return found


def memory(root: Path, pid: int | None) -> list[Channel]:
    """Memory left on the device, and the resident memory of the process that runs the model."""
    found = []
    nodes = [("memory_available", "soc", root / "proc/meminfo", b"MemAvailable")]
    if pid is not None:
        nodes.append(("process_pss", "process", root / f"proc/{pid}/smaps_rollup", b"Pss"))
    for name, site, node, field in nodes:
        text = read_text(node)
        if not text or kilobytes(field)(text.encode()) is None:
            continue
        spec = Spec(
            name=name,
            site=site,
            kind=pb.MEMORY,
            unit="bytes",
            method=f"{node.name} {field.decode()}",
            poll_hz=MEMORY_HZ,
            source=f"/{node.relative_to(root)}",
        )
        found.append(Channel(spec, node, kilobytes(field), size=4096))
    return found
