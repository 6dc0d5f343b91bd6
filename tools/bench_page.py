"""Size and opening time of the report page of 12 variants with traces, in headless Chromium.

    python tools/bench_page.py [--samples 60000] [--repeat 5] [--output report.html]

Exit code 1 when the page is over 8 MB or takes longer than 2 s to open: until all is drawn that is
in view. How long plots in view take is printed too, with the CPU seconds and the machine's load.
Without Chromium only the size is checked.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from chromium import Browser, chromium, find_chromium

from host.errors import RunStatus
from host.report.data import LayerRow, Phase, RunReport, SessionReport, Trace
from host.report.page import report_page
from quant.figures import METRICS, Figure, Provenance

MAX_BYTES = 8_000_000
MAX_S = 2.0
_SOURCE = Provenance.EMULATED_DEVICE
_METRICS = {
    "latency_ms": 4.0,
    "energy_mj": 8.0,
    "power_mw": 2100.0,
    "memory_mb": 20.0,
    "startup_ms": 70.0,
    "throughput_items_per_sec": 250.0,
}


def session(variants: int, samples: int) -> SessionReport:
    """Made-up rows of the size of a real session; only their size and shape matter here."""
    random = np.random.default_rng(0)
    runs = []
    t_s = np.linspace(0.0, 600.0, samples)
    for index in range(variants):
        figures = {
            "accuracy": Figure(
                "accuracy", 0.76 - 0.002 * index, "fraction", Provenance.HTP_EMULATOR, 256,
                0.74 - 0.002 * index, 0.78 - 0.002 * index,
            )
        }  # fmt: skip
        for name, start in _METRICS.items():
            value = start * random.uniform(0.3, 1.0)
            figures[name] = Figure(
                name, value, METRICS[name].unit, _SOURCE, 10, value * 0.99, value * 1.01
            )
        runs.append(
            RunReport(
                run_id=f"run-{index:02d}",
                method="int8",
                variant="fp16" if index == 0 else f"int8[percentile=99.{index}]",
                status=RunStatus.OK,
                figures=figures,
                accuracy_metric="top1",
                accuracy_higher_is_better=True,
                layers=tuple(
                    LayerRow(f"/layer/{k}/weight", "Conv", "w8 per-channel", 30.0 + k % 17)
                    for k in range(200)
                ),
                traces=tuple(
                    Trace(name, unit, _SOURCE, t_s, random.normal(1000, 50, samples))
                    for name, unit in (("power", "mW"), ("npu", "C"), ("npu clock", "MHz"))
                ),
                phases=tuple(Phase("timed", 50.0 * k, 50.0 * k + 45) for k in range(12)),
            )
        )
    return SessionReport(
        "bench-page", datetime.now(UTC), "emulated:sm8650", "sm8650", "made-up", "vision",
        tuple(runs), emulated=True, emulation_basis="made-up rows",
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=60_000, help="samples of each trace")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--output", type=Path, help="keep the page here")
    options = parser.parse_args()
    start = time.monotonic()
    html = report_page(session(12, options.samples))
    print(f"made in {time.monotonic() - start:.2f} s, {len(html.encode()) / 1e6:.2f} MB")
    failed = len(html.encode()) > MAX_BYTES
    with tempfile.TemporaryDirectory() as folder:
        path = options.output or Path(folder) / "report.html"
        path.write_text(html, encoding="utf-8")
        executable = find_chromium()
        if executable is None:
            print("no chromium: opening time not measured")
            return int(failed)
        with chromium(executable) as browser:
            top = opened(browser, path, options.repeat, height=900)
            # So tall that the first plots are in view at once: Plotly is loaded while it opens.
            tall = opened(browser, path, options.repeat, height=4000)
    print(
        f"at load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, median of {options.repeat}:"
    )
    for name, seen in (("as it opens, 1600 x 900", top), ("with plots in view, 1600 x 4000", tall)):
        text, drawn, cpu = (statistics.median(column) for column in zip(*seen, strict=True))
        print(f"{name}: text {text:.2f} s, all in view {drawn:.2f} s, thread's CPU {cpu:.2f} s")
        failed |= seen is top and drawn > MAX_S
    return int(failed)


def opened(browser: Browser, path: Path, repeat: int, *, height: int) -> list[tuple[float, ...]]:
    """Seconds until the text shows, until what is in view is drawn, and CPU seconds, each time."""
    seen = []
    for _ in range(repeat):
        page = browser.page()
        page.call("Performance.enable", timeDomain="threadTicks")
        page.view(1600, height)
        shown, drawn = page.open(path)
        metrics = page.call("Performance.getMetrics")["metrics"]
        cpu = next(float(m["value"]) for m in metrics if m["name"] == "TaskDuration")
        seen.append((shown, drawn, cpu))
        page.close()
    return seen


if __name__ == "__main__":
    sys.exit(main())
