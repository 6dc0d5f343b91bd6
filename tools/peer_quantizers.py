"""Quantize a model with another tool, inside that tool's own environment.

    python tools/peer_quantizers.py METHOD MODEL.onnx CALIBRATION.npz OUT.onnx

tools/bench_quant.py starts it with the Python of a side environment (--peer-env): it imports
nothing of qhost, only numpy, onnx and the tool. CALIBRATION holds arrays by input name, samples on
the first axis, each as one call of the model. OUT is a QDQ graph. Side environments, none of them
a dependency of qhost:

    aimet: pip install aimet-onnx torch onnxruntime
    nncf:  pip install nncf onnx onnxruntime openvino torch
    quark: pip install amd-quark torch onnxruntime
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Feed = dict[str, np.ndarray[Any, Any]]
SEQ_MSE_SAMPLES = 4


def feeds(path: Path) -> list[Feed]:
    with np.load(path) as data:
        arrays = {name: data[name] for name in data.files}
    count = len(next(iter(arrays.values())))
    return [{name: a[i] for name, a in arrays.items()} for i in range(count)]


def aimet(model: Path, calibration: list[Feed], out: Path, method: str) -> None:
    """AIMET with its HTP v75 configuration; -seqmse: sequential MSE on a few samples."""
    import aimet_onnx
    from aimet_onnx import QuantizationSimModel

    weights, activations = {"w8a8": (8, 8), "w8a16": (8, 16), "w4a16": (4, 16)}[
        method.split("-")[1]
    ]
    sim = QuantizationSimModel(
        onnx.load(model),
        param_type=f"int{weights}",
        activation_type=f"int{activations}",
        quant_scheme="min_max",
        config_file="htp_v75",
    )
    if method.endswith("-seqmse"):
        aimet_onnx.apply_seq_mse(sim, calibration[:SEQ_MSE_SAMPLES])
    sim.compute_encodings(calibration)
    onnx.save(sim.to_onnx_qdq(prequantize_constants=True), out)


def nncf(model: Path, calibration: list[Feed], out: Path, method: str) -> None:
    """NNCF's post-training quantization; -transformer sets its model type."""
    import nncf as tool

    kind = tool.ModelType.TRANSFORMER if method.endswith("-transformer") else None
    quantized = tool.quantize(
        onnx.load(model),
        tool.Dataset(calibration),
        subset_size=len(calibration),
        model_type=kind,
        target_device=tool.TargetDevice.ANY,
    )
    onnx.save(quantized, out)


def quark(model: Path, calibration: list[Feed], out: Path, method: str) -> None:
    """Quark: unsigned activations, signed weights per channel, ranges by min-max."""
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization.calibrate import CalibrationMethod
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import Config
    from quark.onnx.quantization.config.custom_config import get_default_config

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples: Iterator[Feed] = iter(calibration)

        def get_next(self) -> Feed | None:
            return next(self.samples, None)

    preset = get_default_config({"w8a8": "U8S8_AAWS", "w8a16": "U16S8_AAWS"}[method.split("-")[1]])
    preset.per_channel = True
    preset.calibrate_method = CalibrationMethod.MinMax
    ModelQuantizer(Config(global_quant_config=preset)).quantize_model(
        str(model), str(out), Reader()
    )


TOOLS: dict[str, Callable[[Path, list[Feed], Path, str], None]] = {
    "aimet": aimet,
    "nncf": nncf,
    "quark": quark,
}


def main() -> int:
    method, model, calibration, out = sys.argv[1:]
    TOOLS[method.split("-")[0]](Path(model), feeds(Path(calibration)), Path(out), method)
    return 0


if __name__ == "__main__":
    sys.exit(main())
