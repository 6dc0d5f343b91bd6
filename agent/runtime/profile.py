"""QNN's per-operator profile: the CSV that the provider writes at profiling_level=detailed.

`python -P -m agent.runtime.profile FILE` prints one as JSON: the host reads those of the SDK so.

Cycles are of the HTP's own counter. Where QNN's emulator stands for the HTP they are cycles of
this machine and say nothing of a device.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

_OPERATOR = re.compile(r"(?P<name>.+?)[: ]OpId_(?P<id>\d+) \(cycles\)$")
_EXECUTE = "QNN (execute) time"


@dataclass
class OperatorProfile:
    """Cycles of one operator in each profiled inference."""

    name: str
    op_id: int
    cycles: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Profile:
    """`execute_us`: (inferences,) time of the whole graph as QNN gives it."""

    operators: tuple[OperatorProfile, ...]
    execute_us: tuple[int, ...]


def parse_profile(text: str) -> Profile:
    """Operators in the order of the first inference. Raises ValueError for another format."""
    rows = csv.reader(text.splitlines())
    header = next(rows, [])
    try:
        time_at = header.index("Time")
        unit_at, name_at = header.index("Unit of Measurement"), header.index("Event Identifier")
    except ValueError as error:
        raise ValueError("this is no QNN profile: a column is missing") from error
    operators: dict[int, OperatorProfile] = {}
    execute = []
    for row in rows:
        if len(row) != len(header):
            continue
        value, unit, name = int(row[time_at]), row[unit_at], row[name_at].strip()
        match = _OPERATOR.match(name)
        if match and unit == "CYCLES":
            key = int(match["id"])
            operators.setdefault(key, OperatorProfile(match["name"], key)).cycles.append(value)
        elif name == _EXECUTE:
            execute.append(value)
    return Profile(tuple(operators.values()), tuple(execute))


def _main(path: Path) -> None:
    try:
        profile = parse_profile(path.read_text())
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    operators = [{"id": op.op_id, "name": op.name, "cycles": op.cycles} for op in profile.operators]
    sys.stdout.write(json.dumps({"execute_us": profile.execute_us, "operators": operators}) + "\n")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
