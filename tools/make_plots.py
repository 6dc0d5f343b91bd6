"""Draw the pictures of docs/ from a real run on the emulated device.

    python tools/make_plots.py [--methods GRAMMAR] [--session-folder DIR]

Runs `qhost bench --mock` on the shipped sample with twelve variants. Every plot type goes to
docs/images/plots/ at twelve variants and at three, the top of the report page to
docs/images/report.png where Chromium is installed, as a phone shows it in the dark to
report-narrow-dark.png. With --session-folder the run of an earlier call is drawn again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from chromium import chromium, find_chromium

from host.report.charts import PLOT_TYPES
from host.report.data import SessionReport
from host.report.load import load_session
from host.report.page import report_page
from host.report.static import save_plot
from host.store import Store

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
METHODS = (
    "fp16,int8,int4,int8[calibration-method=mse],int8[activation-bits=16],int4[activation-bits=8],"
    "per-channel,hybrid,cluster,sparse,int8+sparse[structured-pattern=2:4],int4+qat"
)
FEW = 3


def run_bench(folder: Path, methods: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "host", "bench", "--device", "sm8650", "--mock",
         "--methods", methods],
        cwd=folder,
        check=False,  # a variant that fails is a row of the table, and worth a picture
    )  # fmt: skip


def load(folder: Path) -> SessionReport:
    with Store.open(folder / "qhost-mock.duckdb", read_only=True) as store:
        (report,) = load_session(store, "latest", artifacts=sorted(folder.rglob("*.qnn")))
    return report


def shoot(report: SessionReport, path: Path, *, width: int, height: int, dark: bool) -> None:
    """The top of the report page as PNG."""
    executable = find_chromium()
    if executable is None:
        print("no chromium: the page is not drawn")
        return
    with tempfile.TemporaryDirectory() as folder, chromium(executable) as browser:
        page_file = Path(folder) / "report.html"
        page_file.write_text(report_page(report), encoding="utf-8")
        page = browser.page()
        page.view(width, height, dark=dark)
        page.open(page_file)
        page.draw_all()
        page.screenshot(path, height=height)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--session-folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.session_folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "qhost-mock.duckdb").exists():
            run_bench(folder, options.methods)
        report = load(folder)
    plots = IMAGES / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    for kind in PLOT_TYPES:
        for count in (FEW, len(report.runs)):
            path = plots / f"{kind}-{count}.png"
            # 96 dpi: these pictures are kept in the repository.
            save_plot(replace(report, runs=report.runs[:count]), kind, path, dpi=96)
            print(path)
    shoot(report, IMAGES / "report.png", width=1240, height=1500, dark=False)
    shoot(report, IMAGES / "report-narrow-dark.png", width=400, height=900, dark=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
