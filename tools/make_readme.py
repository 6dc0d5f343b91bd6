"""Fill the README's table and picture from a real run of the program.

    python tools/make_readme.py        runs `qhost bench --mock` on the shipped sample

Everything between the two marks in README.md is replaced; docs/images/pareto.png is drawn.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from host.report.document import from_document
from host.report.static import save_plot
from host.report.table import session_table

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- begin: made by tools/make_readme.py -->", "<!-- end -->"
METHODS = "all"
WIDTH = 100


def run_bench(folder: Path) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "host", "bench", "--device", "sm8650", "--methods", METHODS,
         "--mock", "--json"],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )  # fmt: skip
    document: dict[str, object] = json.loads(done.stdout)
    return document


def main() -> None:
    with tempfile.TemporaryDirectory() as tmp:
        session = from_document(run_bench(Path(tmp)))
    console = Console(width=WIDTH, record=True, file=io.StringIO())
    console.print(session_table(session, WIDTH))
    table = "\n".join(line.rstrip() for line in console.export_text().splitlines())
    picture = ROOT / "docs" / "images" / "pareto.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    save_plot(session, "pareto", picture)
    body = f"\n```\n{table}\n```\n\n![Accuracy against latency](docs/images/pareto.png)\n"
    readme = ROOT / "README.md"
    head, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    tail = rest.split(END)[1]
    readme.write_text(head + BEGIN + body + END + tail, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
