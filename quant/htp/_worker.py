"""The process that holds the vendor's libraries: `python -P -m quant.htp._worker compile|dlc|run`.

A process of its own because the libraries print to stdout, log to fd 2, can crash, and because a
finalized graph's memory only comes back when the process ends. File descriptor 1 is kept for the
answer; whatever the libraries print goes to stderr.

compile: one JSON object on stdin {soc_model, options}; reads model.onnx of the working directory;
writes model_ctx.onnx and its .bin, and trace/qnn_op_trace.json, beside it; answers with one JSON
object.
dlc: as compile, but writes the graph itself, uncompiled, to dlc/<graph>.dlc.
run: argv[2] is the context's .onnx, argv[3] its soc_model; frames on stdin, one answer per frame
on stdout. A frame is a little-endian uint64 length and an .npz of that size.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import signal
import struct
import sys
from typing import Any, BinaryIO

import numpy as np

PROVIDER = "QNNExecutionProvider"
MODEL_NAME = "model.onnx"
CONTEXT_NAME = "model_ctx.onnx"
TRACE_DIR = "trace"
DLC_DIR = "dlc"


def die_with_parent() -> None:
    """Have the kernel end this process when the thread that started it ends, however it does."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _answer_stream() -> BinaryIO:
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return stream


def _session_options(provider_options: dict[str, str]) -> Any:
    import onnxruntime as ort
    import onnxruntime_qnn as qnn

    ort.register_execution_provider_library(PROVIDER, qnn.get_library_path())
    devices = [d for d in ort.get_ep_devices() if d.ep_name == PROVIDER]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # nothing runs on the CPU provider
    # Without this a graph QNN refuses runs on the CPU and nothing says so.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_provider_for_devices(
        devices, {"backend_path": qnn.get_qnn_htp_path(), **provider_options}
    )
    return options


def _compile(answer: BinaryIO) -> None:
    request = json.load(sys.stdin)
    import onnxruntime as ort

    # The compiler's figures exist only in its verbose log.
    ort.set_default_logger_severity(0)
    ort.set_default_logger_verbosity(4)
    options = _session_options(
        {
            "soc_model": str(request["soc_model"]),
            "offload_graph_io_quantization": "0",
            "enable_framework_op_trace": "1",
            "framework_op_trace_dir": TRACE_DIR,
            **request["options"],
        }
    )
    options.log_severity_level = 0
    options.log_verbosity_level = 4
    for key, value in {
        "ep.context_enable": "1",
        "ep.context_embed_mode": "0",
        "ep.context_file_path": CONTEXT_NAME,
    }.items():
        options.add_session_config_entry(key, value)
    result: dict[str, object] = {"ok": True}
    try:
        # The provider names the graph after this path, so it must be the same everywhere.
        ort.InferenceSession(MODEL_NAME, options)
    except Exception as error:  # noqa: BLE001 - the vendor's errors are handed to the parent
        result = {"ok": False, "error": str(error)}
    answer.write(json.dumps(result).encode())
    answer.flush()


def _dlc(answer: BinaryIO) -> None:
    request = json.load(sys.stdin)
    import onnxruntime as ort
    import onnxruntime_qnn as qnn

    options = _session_options(
        {
            "soc_model": str(request["soc_model"]),
            "offload_graph_io_quantization": "0",
            "dump_qnn_ir_dlc": "1",
            "dump_qnn_ir_dlc_dir": DLC_DIR,
            "qnn_ir_backend_path": f"{qnn.LIB_DIR_FULL_PATH}/libQnnIr.so",
        }
    )
    result: dict[str, object] = {"ok": True}
    try:
        ort.InferenceSession(MODEL_NAME, options)
    except Exception as error:  # noqa: BLE001 - the vendor's errors are handed to the parent
        result = {"ok": False, "error": str(error)}
    answer.write(json.dumps(result).encode())
    answer.flush()


def write_frame(stream: BinaryIO, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    """Write named arrays as one frame. Names may be any string: they travel as positions."""
    buffer = io.BytesIO()
    names = list(arrays)
    packed: dict[str, Any] = {f"a{i}": arrays[n] for i, n in enumerate(names)}
    np.savez(buffer, names=np.array(names, dtype=np.str_), **packed)
    data = buffer.getbuffer()
    stream.write(struct.pack("<Q", len(data)))
    stream.write(data)
    stream.flush()


def read_frame(stream: BinaryIO) -> dict[str, np.ndarray[Any, Any]] | None:
    """The next frame, or None where the stream ends."""
    header = stream.read(8)
    if len(header) < 8:
        return None
    (size,) = struct.unpack("<Q", header)
    data = stream.read(size)
    if len(data) < size:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as npz:
        return {str(n): npz[f"a{i}"] for i, n in enumerate(npz["names"])}


def _run(answer: BinaryIO, context: str, soc_model: str) -> None:
    import onnxruntime as ort

    options = _session_options({"soc_model": soc_model})
    options.log_severity_level = 3
    session = ort.InferenceSession(context, options)
    # On an error inside QNN the session would rebuild itself on the CPU and hide it.
    session.disable_fallback()
    names = [o.name for o in session.get_outputs()]
    while (feed := read_frame(sys.stdin.buffer)) is not None:
        outputs = session.run(names, feed)
        write_frame(answer, dict(zip(names, outputs, strict=True)))


def main() -> None:
    answer = _answer_stream()
    if sys.argv[1] in ("compile", "dlc"):
        die_with_parent()
        (_compile if sys.argv[1] == "compile" else _dlc)(answer)
    else:
        _run(answer, sys.argv[2], sys.argv[3])
    answer.close()
    # The vendor's static destructors are slow and have nothing left to do.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
