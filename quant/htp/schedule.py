"""What the compiler's schedule says of a graph: which units work, and how full VTCM is.

The compiler writes its schedule as text when asked to trace. It is read when it is needed and
thrown away: nothing of it is stored. Its format is not documented, so what cannot be found in it
is reported as missing instead of guessed.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from quant.errors import ToolchainError, UserError
from quant.htp.compile import COMPILE_TIMEOUT_S, read_log, refusal, run_compiler
from quant.htp.options import HtpOptions
from quant.htp.soc import Soc

TRACE_OPTIONS = {"profiling_level": "optrace", "profiling_file_path": "profile.csv"}
BUCKETS = 32

_UNIT_FLAGS = re.compile(r"(0x[0-9a-f]+): \{\s*'flags' ?: ?\(([^)]*)\)")
_OPERATION = re.compile(
    r"'#\d+': opdesc\( (0x[0-9a-f]+), \"([^\"]+)\".*?runlist_pos = (-?\d+),(.*?)\n  \),", re.DOTALL
)
_GROUP = re.compile(r"'(mg\d+)': memgroup\(bytes=(\d+), is_tcm=(True|False)")
_GROUP_USE = re.compile(r"memgrps_(?:in|out) = \(([^)]*)\)")
_TRAFFIC = re.compile(
    r'"dram_read": (\d+) , "dram_write": (\d+) , "vtcm_read": (\d+) , "vtcm_write": (\d+)'
)


@dataclass(frozen=True)
class Schedule:
    """One graph's schedule.

    operations: steps of the run list; hmx, hvx, dma: those that use the matrix unit, the vector
    unit, the DMA engine (a step may use several); sync: barriers. vtcm_over_time: bytes of VTCM in
    use in BUCKETS equal parts of the run list (the largest of each part), by the lifetime of the
    memory groups. kinds: steps by operator, most frequent first. stage_us: compile time by stage.
    """

    operations: int
    hmx: int
    hvx: int
    dma: int
    sync: int
    vtcm_peak_bytes: int
    vtcm_over_time: tuple[int, ...]
    dram_read_bytes: int
    dram_write_bytes: int
    vtcm_read_bytes: int
    vtcm_write_bytes: int
    kinds: tuple[tuple[str, int], ...]
    stage_us: dict[str, int]


def read_schedule(onnx_path: Path, soc: Soc, options: HtpOptions) -> Schedule:
    """Compile `onnx_path` once more with the trace and summarise the schedule.

    Raises UserError where the HTP refuses the graph, ToolchainError where the schedule is missing
    or its format is not the one this reads.
    """
    options.check(soc)
    with tempfile.TemporaryDirectory(prefix="qhost-schedule-") as temp:
        work = Path(temp)
        answer, log = run_compiler(
            onnx_path, soc, options, work, COMPILE_TIMEOUT_S, extra=TRACE_OPTIONS
        )
        if not answer["ok"]:
            raise refusal(soc, str(answer["error"]), work, log)
        files = list(work.glob("*_schematic.bin"))
        if not files:
            raise ToolchainError("The compiler wrote no schedule.")
        if len(files) > 1:
            raise UserError(f"{onnx_path.name} compiles into {len(files)} graphs, not one.")
        _, stages = read_log(log)
        return parse_schedule(files[0].read_text(errors="replace"), stages)


def parse_schedule(text: str, stages: dict[str, int]) -> Schedule:
    """Summarise the text of a schedule."""
    steps = [
        (int(ident, 16), kind, int(position), rest)
        for ident, kind, position, rest in _OPERATION.findall(text)
        if int(position) >= 0
    ]
    if not steps:
        raise ToolchainError("The compiler's schedule has another format than expected.")
    flags = {int(ident, 16): found for ident, found in _UNIT_FLAGS.findall(text)}
    units: Counter[str] = Counter()
    for ident, _, _, _ in steps:
        for unit in ("uses_hmx", "uses_hvx", "uses_dma", "sync"):
            units[unit] += unit in flags.get(ident, "")
    traffic = [tuple(map(int, row)) for row in _TRAFFIC.findall(text)]
    totals = [sum(column) for column in zip(*traffic, strict=True)] if traffic else [0] * 4
    occupancy = _occupancy(text, steps)
    return Schedule(
        operations=len(steps),
        hmx=units["uses_hmx"],
        hvx=units["uses_hvx"],
        dma=units["uses_dma"],
        sync=units["sync"],
        vtcm_peak_bytes=max(occupancy),
        vtcm_over_time=_buckets(occupancy),
        dram_read_bytes=totals[0],
        dram_write_bytes=totals[1],
        vtcm_read_bytes=totals[2],
        vtcm_write_bytes=totals[3],
        kinds=tuple(Counter(kind for _, kind, _, _ in steps).most_common()),
        stage_us=stages,
    )


def _occupancy(text: str, steps: list[tuple[int, str, int, str]]) -> list[int]:
    """VTCM bytes alive at every step: a group lives from its first to its last use."""
    sizes = {name: int(size) for name, size, tcm in _GROUP.findall(text) if tcm == "True"}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for _, _, position, rest in steps:
        for uses in _GROUP_USE.findall(rest):
            for name in re.findall(r"mg\d+", uses):
                first[name] = min(first.get(name, position), position)
                last[name] = max(last.get(name, position), position)
    change = [0] * (max(position for _, _, position, _ in steps) + 2)
    for name, size in sizes.items():
        if name in first:
            change[first[name]] += size
            change[last[name] + 1] -= size
    alive, total = [], 0
    for delta in change[:-1]:
        total += delta
        alive.append(total)
    return alive


def _buckets(values: list[int]) -> tuple[int, ...]:
    count = min(BUCKETS, len(values))
    edges = [len(values) * i // count for i in range(count + 1)]
    return tuple(max(values[a:b]) for a, b in pairwise(edges))
