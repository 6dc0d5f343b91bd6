"""The main job as its user runs it: every method on the shipped sample, how long, how accurate.

    python tools/bench_methods.py          exits 1 where a method loses more than it may

Runs `qhost bench --device sm8650 --methods all --mock` in an empty folder with an empty cache, and
reads the accuracies of the float model (onnxruntime) and of each variant (HTP emulator) on the same
samples back from the artifacts. Needs the extra `train`.
"""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from quant.artifact import open_artifact

POINTS = 2.0  # accuracy that a method may lose against float
WIDER = {"int4": 5.0, "sparse": 5.0}  # without fine-tuning: four bits, half of the weights zero


def run_bench(folder: Path) -> tuple[dict[str, str], float, float]:
    """(status by variant, wall seconds, CPU seconds) of a bench in `folder`."""
    environment = {**os.environ, "QHOST_CACHE_DIR": str(folder / "cache")}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "host", "bench", "--device", "sm8650", "--methods", "all",
         "--mock", "--json"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )  # fmt: skip
    wall = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    document = json.loads(done.stdout)
    states = {run["variant"]: run["status"] for run in document["runs"]}
    return states, wall, used.ru_utime + used.ru_stime


def main() -> int:
    broken = []
    with tempfile.TemporaryDirectory(prefix="bench-methods-") as temp:
        states, wall, cpu = run_bench(Path(temp))
        artifacts = {
            str(a.manifest["variant"]): a
            for a in map(open_artifact, Path(temp).glob("qhost-out/*/*.qnn"))
        }
        for variant, status in states.items():
            row: dict[str, object] = {"variant": variant, "status": status}
            if status == "ok":
                with np.load(io.BytesIO(artifacts[variant].read("quality/scores.npz"))) as scores:
                    n = len(scores["htp_emulator"])
                    reference, got = scores["float"][:n].mean(), scores["htp_emulator"].mean()
                lost = 100 * float(reference - got)
                row |= {"n": n, "float": round(100 * float(reference), 2), "lost_points": lost}
                row["may_lose"] = WIDER.get(variant, POINTS)
            if status != "ok" or lost > WIDER.get(variant, POINTS):
                broken.append(variant)
            print(json.dumps(row), flush=True)
    load = round(os.getloadavg()[1], 1)
    print(json.dumps({"wall_s": round(wall, 1), "cpu_s": round(cpu, 1), "load": load}))
    print(f"broken: {', '.join(broken)}" if broken else "every method within its bound")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
