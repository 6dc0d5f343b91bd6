"""Command lines, configuration files and errors of the QAIRT SDK's tools; no I/O here.

As their public documentation and users' scripts have them. Everything of the SDK lies in one
folder of the device; a job's own files lie in another, which is the tools' working directory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import BadArtifact
from agent.runtime import Array, Context, Feed, Tensor

NET_RUN = "qnn-net-run"
THROUGHPUT = "qnn-throughput-net-run"
EXTENSIONS = "extensions.json"  # of qnn-net-run; points to HTP
HTP = "htp.json"
PROFILE_LOG = "qnn-profiling-data_0.log"
METADATA = "execution_metadata.yaml"
STAMP = "emulated: true"  # the first words of what a stand-in of a tool writes there
# Where DSPs look for their half of the runtime after the folder that holds ours.
_DSP_FOLDERS = ("/vendor/dsp/cdsp", "/vendor/lib/rfsa/adsp", "/dsp")
_DTYPES: Mapping[str, type[np.generic]] = {
    "float32": np.float32, "float16": np.float16, "bool": np.bool_,
    "int8": np.int8, "int16": np.int16, "int32": np.int32, "int64": np.int64,
    "uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64,
    "sfixed8": np.int8, "sfixed16": np.int16, "sfixed32": np.int32,
    "ufixed8": np.uint8, "ufixed16": np.uint16, "ufixed32": np.uint32,
}  # fmt: skip
_ERRORS = {
    "14001": "the DSP does not find its half of the runtime (the skel), or finds one of another "
    "QAIRT build",
    "1002": "the DSP refuses these libraries: they do not fit its firmware, or it allows no "
    "unsigned protection domain",
    "1008": "the DSP refuses these libraries: they do not fit its firmware, or it allows no "
    "unsigned protection domain",
    "4000": "the HTP cannot be initialised: no DSP that this user may open",
}
_COMPLAINT = re.compile(r"err|fail|abort|fatal|unable|cannot", re.IGNORECASE)
_CODE = re.compile(r"(?<![\w.])(14001|1002|1008|4000)(?![\w.])")


def dtype_of(tensor: Tensor) -> np.dtype[Any]:
    """The array type of a raw file. BadArtifact where no array can hold it (4-bit types)."""
    if tensor.dtype not in _DTYPES:
        raise BadArtifact(f"{tensor.name} is of type {tensor.dtype}, which has no raw file")
    return np.dtype(_DTYPES[tensor.dtype])


def environment(tools: Path, base: Mapping[str, str]) -> dict[str, str]:
    """Of a tool. The libraries of the system are not for our Python, and ours not for it."""
    kept = {name: base[name] for name in ("PATH", "HOME", "TMPDIR") if name in base}
    return {
        **kept,
        "LD_LIBRARY_PATH": str(tools),
        "ADSP_LIBRARY_PATH": ";".join((str(tools), *_DSP_FOLDERS)),
    }


def extensions(tools: Path, work: Path) -> dict[str, Any]:
    """The file that --config_file names."""
    return {
        "backend_extensions": {
            "shared_library_path": str(tools / "libQnnHtpNetRunExtensions.so"),
            "config_file_path": str(work / HTP),
        }
    }


def htp_config(context: Context, htp_arch: int) -> dict[str, Any]:
    """The HTP's own file. The Hexagon v68 cannot poll: it does not get the key."""
    core: dict[str, Any] = {"perf_profile": context.perf_profile}
    if context.rpc_control_latency_us:
        core["rpc_control_latency"] = context.rpc_control_latency_us
    if context.rpc_polling_us and htp_arch > 68:
        core["rpc_polling_time"] = context.rpc_polling_us
    device = {
        "soc_model": context.soc_model,
        "dsp_arch": f"v{htp_arch}",
        "pd_session": "unsigned",
        "cores": [core],
    }
    return {"devices": [device]}


def net_run(
    tools: Path,
    context: Context,
    input_list: str,
    output_dir: str,
    counts: tuple[int, int],
    profile: str,
) -> list[str]:
    """One run of qnn-net-run. `counts`: inferences, and outputs to keep; `profile`: "" or a
    profiling level."""
    inferences, kept = counts
    command = [
        str(tools / NET_RUN),
        *("--retrieve_context", str(context.binary)),
        *("--backend", str(tools / "libQnnHtp.so")),
        *("--input_list", input_list),
        *("--output_dir", output_dir),
        "--use_native_input_files",
        "--use_native_output_files",
        *("--num_inferences", str(inferences)),
        *("--keep_num_outputs", str(kept)),
        *("--perf_profile", context.perf_profile),
        *("--config_file", EXTENSIONS),
        *("--log_level", "error"),
    ]
    return command + (["--profiling_level", profile] if profile else [])


def throughput(tools: Path, config: str, output: str) -> list[str]:
    return [str(tools / THROUGHPUT), "--config", config, "--output", output]


def throughput_config(
    tools: Path, context: Context, input_list: str, inferences: int
) -> dict[str, Any]:
    """`inferences` back to back in one thread; outputs are not saved."""
    return {
        "backends": [
            {
                "backendName": "htp",
                "backendPath": str(tools / "libQnnHtp.so"),
                "profilingLevel": "OFF",
                "backendExtensions": str(tools / "libQnnHtpNetRunExtensions.so"),
                "perfProfile": context.perf_profile,
            }
        ],
        "models": [
            {
                "modelName": "model",
                "modelPath": str(context.binary),
                "loadFromCachedBinary": True,
                "inputPath": input_list,
                "inputDataType": "NATIVE",
                "outputPath": "throughput",
                "outputDataType": "NATIVE_ONLY",
                "saveOutput": "NONE",
            }
        ],
        "contexts": [{"contextName": "context"}],
        "testCase": {
            "iteration": 1,
            "logLevel": "error",
            "threads": [
                {
                    "threadName": "thread",
                    "backend": "htp",
                    "context": "context",
                    "model": "model",
                    "interval": 0,
                    "loopUnit": "count",
                    "loop": inferences,
                }
            ],
        },
    }


def raw_inputs(context: Context, feed: Feed) -> dict[str, bytes]:
    """{input: content of its raw file} in the context's own types.

    BadArtifact where the feed does not fit, or would change its values by being converted.
    """
    raw = {}
    for tensor in _required(context.inputs):
        if tensor.name not in feed:
            raise BadArtifact(f"the goldens have no input {tensor.name!r}")
        given, dtype = np.asarray(feed[tensor.name]), dtype_of(tensor)
        if given.size != int(np.prod(tensor.shape)):
            raise BadArtifact(
                f"input {tensor.name!r} is {given.shape}, the context wants {tensor.shape}"
            )
        converted = np.ascontiguousarray(given, dtype)
        if given.dtype != dtype and not np.array_equal(converted.astype(given.dtype), given):
            raise BadArtifact(
                f"input {tensor.name!r} is {given.dtype}, the context takes {tensor.dtype}"
            )
        raw[tensor.name] = converted.tobytes()
    return raw


def input_line(names: Sequence[str], prefix: str) -> str:
    """One line of an input list: the file of each input by its name."""
    return " ".join(f"{name}:={prefix}{i}.raw" for i, name in enumerate(names))


def read_outputs(context: Context, folder: Path) -> dict[str, Array]:
    """One result's raw files as arrays. BadArtifact where one is missing or of another size.

    Types other than float32 are written as <name>_native.raw.
    """
    outputs = {}
    for tensor in _required(context.outputs):
        stem = file_name(tensor.name)
        names = [f"{stem}_native.raw", f"{stem}.raw"]
        path = next((folder / n for n in names if (folder / n).is_file()), None)
        if path is None:
            raise BadArtifact(f"{NET_RUN} wrote no output {tensor.name!r}")
        data, dtype = path.read_bytes(), dtype_of(tensor)
        if len(data) != int(np.prod(tensor.shape)) * dtype.itemsize:
            raise BadArtifact(
                f"{NET_RUN} wrote {len(data)} bytes of output {tensor.name!r}, "
                f"{tensor.shape} of {tensor.dtype} were expected"
            )
        outputs[tensor.name] = np.frombuffer(data, dtype).reshape(tensor.shape)
    return outputs


def file_name(tensor: str) -> str:
    """How the tools spell a tensor in a file's name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", tensor)


def _required(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not tensors:
        raise BadArtifact("the manifest does not list the context's inputs and outputs")
    return tensors


def explain(tool: str, code: int, said: str) -> str:
    """One line of why a tool failed: its own last complaint, and what a known code means."""
    how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    complaints = [line for line in lines if _COMPLAINT.search(line)]
    known = next((_CODE.search(line) for line in complaints if _CODE.search(line)), None)
    text = (complaints or lines or ["it said nothing"])[-1][:300]
    if known:
        text = f"error {known[1]}: {_ERRORS[known[1]]} ({text})"
    return f"{tool} {how}: {text}"
