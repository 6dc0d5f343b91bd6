"""One table: accuracy, SQNR, size, CPU seconds and peak memory of every method on every sample.

    python tools/bench_quant.py --samples DIR [--only minilm,...] [--methods int8,int4] [--n 200]
        [--seeds 3] [--emulator 32] [--peer-env aimet=PYTHON --peers aimet-w8a8,...]

DIR holds one folder per sample with model.onnx and task.npz, as `qhost samples build` writes.
onnxruntime's own static quantizer runs on the same files, as the rows `onnxruntime-*`. Every case
is a process of its own that loads, quantizes and saves, and whose CPU seconds (user + system) and
peak resident memory the kernel reports; accuracy is then computed in onnxruntime with
ORT_DISABLE_ALL.

--seeds: each figure is the median over calibration seeds (0: all samples in order; then random
nine tenths of them); the interval is that of the seed with the median value. --emulator: the file
of seed 0 is also compiled strictly for SM8650 and its first samples run in the HTP emulator.
--peer-env: the Python of a side environment, for the peers named by --peers (see
tools/peer_quantizers.py); they run on the same files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

DEFAULT_METHODS = (
    "int8,int8[activation-bits=16],per-channel,per-channel[activation-bits=16],"
    "per-channel[optimization-level=3],per-channel[optimization-level=3,activation-bits=16],int4"
)
PEERS = ("onnxruntime-w8a8", "onnxruntime-w8a16")
RESAMPLES = 2000
COLUMNS = ("value", "cosine", "sqnr_db", "bytes", "cpu_s", "peak_mb")
EMULATED_SOC = "sm8650"


def quantize_case(folder: Path, method: str, out: Path, seed: int) -> None:
    """Quantize one sample with one method (in a process of its own)."""
    if method in PEERS:
        _onnxruntime(folder, out, 16 if method.endswith("a16") else 8, seed)
        return
    from quant.methods.grammar import export, parse_methods, quantize
    from quant.model import load, save
    from quant.task import load_task

    model = load(folder / "model.onnx")
    task = _shuffled(load_task(folder / "task.npz", model), seed)
    save(export(quantize(model, task, parse_methods(method)[0])), out)


def _shuffled(task: Any, seed: int) -> Any:
    """Seed 0: the calibration samples as they are; else a random 9 of 10 of them."""
    if seed == 0:
        return task
    import dataclasses

    rng = np.random.default_rng(seed)
    n = task.n_calibration
    chosen = rng.permutation(n)[: max(1, n * 9 // 10)]
    calibration = {k: v[chosen] for k, v in task.calibration.items()}
    return dataclasses.replace(task, calibration=calibration)


def _onnxruntime(folder: Path, out: Path, bits: int, seed: int) -> None:
    """onnxruntime.quantization with its QNN configuration, per channel, min-max."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

    from quant.model import load, save
    from quant.task import load_task

    model = load(folder / "model.onnx")
    task = _shuffled(load_task(folder / "task.npz", model), seed)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.i = 0

        def get_next(self) -> dict[str, Any] | None:
            if self.i >= task.n_calibration:
                return None
            self.i += 1
            feed: dict[str, Any] = task.feed(model, self.i - 1, "calibration")
            return feed

    source = out.with_suffix(".opset21.onnx")
    save(model, source)
    config = get_qnn_qdq_config(
        str(source),
        Reader(),
        activation_type=QuantType.QUInt16 if bits == 16 else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    quantize(str(source), str(out), config)
    source.unlink()
    onnx.checker.check_model(str(out))


def evaluate_case(folder: Path, variant: Path | None, n: int) -> dict[str, Any]:
    """Outputs and scores of a quantized file (None: the float model) on the first n samples."""
    from quant.evaluate import run_ort, stack
    from quant.model import load
    from quant.task import load_task

    model = load(folder / "model.onnx")
    task = load_task(folder / "task.npz", model)
    count = min(n, len(task))
    outputs = run_ort(variant or folder / "model.onnx", task, count)
    stacked = stack([{s.name: o[s.name] for s in model.outputs} for o in outputs])
    result: dict[str, Any] = {"outputs": stacked, "n": count, "metric": "", "scores": None}
    if task.metric is not None and task.labels is not None:
        result["metric"] = task.metric.name
        result["scores"] = task.metric.per_sample(stacked, task.labels[:count])
        result["aggregate"] = task.metric.aggregate
    return result


def _compare(reference: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    from quant.metrics import cosine_rows
    from quant.report import sqnr_db

    name = list(reference["outputs"])[-1]
    a, b = reference["outputs"][name], ours["outputs"][name]
    row: dict[str, Any] = {
        "metric": ours["metric"],
        "n": ours["n"],
        "sqnr_db": float(np.median([sqnr_db(x, y) for x, y in zip(a, b, strict=True)])),
        "cosine": float(cosine_rows(b, a).mean()),
    }
    if ours["scores"] is not None:
        aggregate = ours["aggregate"]
        row["value"] = aggregate(ours["scores"])
        row["float"] = aggregate(reference["scores"])
        rng = np.random.default_rng(0)
        draws = rng.integers(0, ours["n"], (RESAMPLES, ours["n"]))
        changes = [aggregate(ours["scores"][d]) - aggregate(reference["scores"][d]) for d in draws]
        row["change_ci"] = [float(v) for v in np.quantile(changes, [0.025, 0.975])]
    return row


def run_case(
    folder: Path, method: str, out: Path, seed: int, environments: dict[str, str]
) -> tuple[float, float] | str:
    """(CPU seconds, peak MB) of the quantizing process, or its last line if it failed."""
    command = [sys.executable, __file__, "--case", str(folder), method, str(out), str(seed)]
    tool = method.split("-")[0]
    if tool in environments and method not in PEERS:
        calibration = out.with_suffix(".calibration.npz")
        _write_calibration(folder, seed, calibration)
        script = str(Path(__file__).with_name("peer_quantizers.py"))
        command = [environments[tool], script, method, str(folder / "model.onnx")]
        command += [str(calibration), str(out)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        lines = errors.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit {process.returncode}"
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def _write_calibration(folder: Path, seed: int, path: Path) -> None:
    from quant.model import load
    from quant.task import load_task

    model = load(folder / "model.onnx")
    task = _shuffled(load_task(folder / "task.npz", model), seed)
    feeds = [task.feed(model, i, "calibration") for i in range(task.n_calibration)]
    np.savez(path, **{name: np.stack([f[name] for f in feeds]) for name in feeds[0]})


def emulate_case(folder: Path, variant: Path, n: int) -> dict[str, Any]:
    """SQNR and agreement of the HTP emulator with onnxruntime and with float, n samples.

    Agreement: share of equal top classes where the task is judged by them, else the mean cosine.
    """
    from quant.evaluate import evaluate_outputs, run_ort
    from quant.figures import Provenance
    from quant.htp.compile import compile_context
    from quant.htp.emulator import HtpEmulator
    from quant.htp.options import HtpOptions
    from quant.htp.soc import get_soc
    from quant.model import load
    from quant.task import load_task

    model = load(folder / "model.onnx")
    task = load_task(folder / "task.npz", model)
    count = min(n, len(task))
    out = variant.with_suffix(".compiled")
    compiled = compile_context(variant, get_soc(EMULATED_SOC), HtpOptions(), out)
    with HtpEmulator(compiled.context_onnx) as emulator:
        ours = emulator.run([task.feed(model, i) for i in range(count)])
    row: dict[str, Any] = {"n": count}
    for name, path in (("ort", variant), ("float", folder / "model.onnx")):
        reference = run_ort(path, task, count)
        found = evaluate_outputs(task, reference, ours, Provenance.HTP_EMULATOR)
        row |= {f"sqnr_{name}_db": found.sqnr_db, f"agreement_{name}": found.agreement}
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--methods", default=DEFAULT_METHODS)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--peers", default="")
    parser.add_argument("--peer-env", action="append", default=[], metavar="TOOL=PYTHON")
    parser.add_argument("--emulator", type=int, default=0, metavar="N")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", nargs=4, metavar=("FOLDER", "METHOD", "OUT", "SEED"))
    args = parser.parse_args()
    if args.case:
        folder, method, out, seed = args.case
        quantize_case(Path(folder), method, Path(out), int(seed))
        return 0
    from quant.methods.grammar import parse_methods

    environments = dict(pair.split("=", 1) for pair in args.peer_env)
    methods = [v.canonical for v in parse_methods(args.methods)] if args.methods else []
    methods += [] if args.no_peers else list(PEERS)
    methods += [peer for peer in args.peers.split(",") if peer]
    folders = sorted(p.parent for p in args.samples.glob("*/task.npz"))
    if args.only:
        folders = [f for f in folders if f.name in args.only.split(",")]
    rows: list[dict[str, Any]] = []
    print(_HEADER + "\n" + "|---" * (_HEADER.count("|") - 1) + "|")
    for folder in folders:
        reference = evaluate_case(folder, None, args.n)
        for method in methods:
            row = _measure(folder, method, reference, args, environments)
            rows.append(row)
            print(_line(row), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    return 0


def _measure(
    folder: Path,
    method: str,
    reference: dict[str, Any],
    args: argparse.Namespace,
    environments: dict[str, str],
) -> dict[str, Any]:
    """Medians over the seeds; CPU and memory of the quantizing processes."""
    found: list[dict[str, Any]] = []
    row: dict[str, Any] = {"sample": folder.name, "method": method}
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as tmp:
            out = Path(tmp) / "model.onnx"
            cost = run_case(folder, method, out, seed, environments)
            if isinstance(cost, str):
                return {**row, "error": cost}
            one = _compare(reference, evaluate_case(folder, out, args.n))
            one |= {"bytes": out.stat().st_size, "cpu_s": cost[0], "peak_mb": cost[1]}
            found.append(one)
            if seed == 0 and args.emulator and method not in PEERS and not args.peer_env:
                row["emulator"] = emulate_case(folder, out, args.emulator)
    found.sort(key=lambda r: r.get("value", r["cosine"]))
    row |= found[len(found) // 2]
    row["seeds"] = found
    row |= {c: float(np.median([r[c] for r in found])) for c in COLUMNS if c in row}
    return row


_HEADER = (
    "| sample | method | metric | value | over seeds | float | 95 % of the change | cosine "
    "| SQNR dB | kB | CPU s | peak MB | n | HTP SQNR dB: onnxruntime, float | HTP agreement |"
)


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        width = _HEADER.count("|") - 3
        return (
            f"| {row['sample']} | `{row['method']}` | failed: {row['error'][:120]} " + "|" * width
        )
    value, reference = row.get("value"), row.get("float")
    low, high = row.get("change_ci", [float("nan")] * 2)
    values = [r["value"] for r in row["seeds"] if "value" in r]
    emulator = row.get("emulator")
    cells = [
        row["sample"],
        f"`{row['method']}`",
        row["metric"],
        "" if value is None else f"{value:.4f}",
        f"{min(values):.4f} to {max(values):.4f}" if len(values) > 1 else "",
        "" if reference is None else f"{reference:.4f}",
        "" if value is None else f"{low:+.4f} to {high:+.4f}",
        f"{row['cosine']:.5f}",
        f"{row['sqnr_db']:.1f}",
        f"{row['bytes'] / 1e3:,.0f}",
        f"{row['cpu_s']:.1f}",
        f"{row['peak_mb']:.0f}",
        str(row["n"]),
        f"{emulator['sqnr_ort_db']:.1f}, {emulator['sqnr_float_db']:.1f}" if emulator else "",
        f"{emulator['agreement_ort']:.4f} (n {emulator['n']})" if emulator else "",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
