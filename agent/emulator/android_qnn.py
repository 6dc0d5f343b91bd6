"""Stand-ins for qnn-net-run and qnn-throughput-net-run on the emulated device: their command
lines, their files, our numerics.

Command lines and the layout of the output are those of the tools' public documentation; the model
runs in Qualcomm's HTP emulator. No QAIRT SDK was met when this was written. Whatever they write is
stamped: execution_metadata.yaml says `emulated: true`, and so does its first line.

Unlike the real tools they need the context's ONNX wrapper beside the binary (`<name>.onnx`, as in
an artifact), because that is what the HTP emulator loads. Each distinct input runs once;
repetitions replay it. A device that has hardware of its own (agent.emulator.hardware) is told what
to do and takes the time of its model, for which the artifact's manifest is needed; on any other
the time is the agent's, and the tools tell none.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.emulator.hardware import SOCKET, run_on_hardware
from agent.emulator.phone import Phone, emulated_phone
from agent.errors import AgentError
from agent.runtime import Array, Context
from agent.runtime.ort_qnn import PERF_PROFILES, OrtQnnRuntime
from agent.socs import SOCS

STAMP = "emulated: true  # Qualcomm's HTP emulator on another machine; no figure here is measured"
_CACHE = Path("/data/local/tmp/.emulated-outputs")
_DTYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8, "tensor(uint16)": np.uint16, "tensor(int16)": np.int16,
    "tensor(int32)": np.int32, "tensor(uint32)": np.uint32, "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}  # fmt: skip
# The throughput tool's configuration: every key that it takes, and those it cannot do without.
_BACKEND_KEYS = {
    "backendName", "backendPath", "profilingLevel", "backendExtensions", "perfProfile"
}  # fmt: skip
_MODEL_KEYS = {
    "modelName", "modelPath", "loadFromCachedBinary", "inputPath", "inputDataType", "outputPath",
    "outputDataType", "saveOutput",
}  # fmt: skip
_THREAD_KEYS = {"threadName", "backend", "context", "model", "interval", "loopUnit", "loop"}


class ToolError(Exception):
    """What the tool prints before it ends with code 1."""


def main(tool: str, argv: Sequence[str]) -> int:
    try:
        if tool == "qnn-throughput-net-run":
            _throughput(_throughput_options(argv))
        else:
            _run(_options(argv))
    except (ToolError, OSError) as error:
        sys.stderr.write(f"{tool} (EMULATED): {error}\n")
        return 1
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="qnn-net-run", allow_abbrev=False, description=__doc__)
    parser.add_argument("--retrieve_context", type=Path, required=True)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--input_list", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, default=Path("output"))
    parser.add_argument("--use_native_input_files", action="store_true")
    parser.add_argument("--use_native_output_files", action="store_true")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--num_inferences", type=int)
    length.add_argument("--duration", type=float)
    parser.add_argument("--keep_num_outputs", type=int)
    parser.add_argument("--perf_profile", choices=PERF_PROFILES, default="default")
    parser.add_argument("--profiling_level", choices=("basic", "detailed"))
    parser.add_argument("--config_file", type=Path)
    parser.add_argument("--log_level", default="error")
    parser.add_argument("--version", action="version", version="qnn-net-run EMULATED")
    return parser.parse_args(argv)


def _throughput_options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="qnn-throughput-net-run", allow_abbrev=False)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args(argv)


def _phone() -> Phone:
    phone = emulated_phone(Path("/"))
    if phone is None:
        raise ToolError("this is the stand-in of an emulated device, and this is none")
    return phone


def _run(options: argparse.Namespace) -> None:
    phone = _phone()
    _check_backend(options.backend)
    if options.duration is not None or options.profiling_level:
        raise ToolError("the emulated tool tells no time: --duration and --profiling_level")
    if options.config_file:
        _check_config(options.config_file)
    wrapper = options.retrieve_context.with_suffix(".onnx")
    for path in (options.retrieve_context, wrapper):
        if not path.is_file():
            raise ToolError(f"no file {path}")
    lines = _input_lines(options.input_list)
    count = options.num_inferences or len(lines)
    context = Context(
        wrapper,
        options.retrieve_context,
        "",
        SOCS[phone.soc].soc_model,
        options.perf_profile,
    )
    runtime = OrtQnnRuntime(options.output_dir.with_suffix(".log"))
    try:
        _infer(runtime, context, lines, count, options)
    except AgentError as error:
        raise ToolError(str(error)) from error
    finally:
        runtime.close()
    _spend(phone, options.retrieve_context, options.perf_profile, count)


def _throughput(options: argparse.Namespace) -> None:
    """Times only: the real tool saves outputs on demand, which is not offered here."""
    phone = _phone()
    config = _read_json(options.config)
    try:
        (backend,) = config["backends"]
        (model,) = config["models"]
        (thread,) = config["testCase"]["threads"]
        contexts = [entry["contextName"] for entry in config["contexts"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ToolError(f"{options.config} is no configuration: {error}") from None
    for entry, keys in ((backend, _BACKEND_KEYS), (model, _MODEL_KEYS), (thread, _THREAD_KEYS)):
        if set(entry) != keys:
            raise ToolError(f"{options.config}: {sorted(set(entry) ^ keys)} missing or unknown")
    names = (thread["backend"], thread["model"], thread["context"])
    if names != (backend["backendName"], model["modelName"], *contexts):
        raise ToolError(f"{options.config}: the thread names what is not there: {names}")
    if (model["loadFromCachedBinary"], thread["loopUnit"], model["saveOutput"]) != (
        True, "count", "NONE",
    ):  # fmt: skip
        raise ToolError("only counted loops over a cached binary, without outputs, are emulated")
    _check_backend(backend["backendPath"])
    _input_lines(Path(model["inputPath"]))
    count = int(thread["loop"]) * int(config["testCase"]["iteration"])
    answer = _spend(phone, Path(model["modelPath"]), backend["perfProfile"], count)
    if answer is None:
        raise ToolError("the emulated tool tells no time on this device")
    options.output.write_text(json.dumps({"emulated": True, "note": STAMP, **answer}) + "\n")


def _spend(phone: Phone, binary: Path, perf_profile: str, count: int) -> dict[str, Any] | None:
    """Let the device's hardware work; None where the device has none."""
    if not (phone.tree / SOCKET).exists():
        return None
    manifest = _read_json(binary.parents[2] / "manifest.json")
    request = {
        "binary": str(binary),
        "model": manifest.get("device_model", {}).get(phone.soc),
        "perf_profile": perf_profile,
        "inferences": count,
    }
    try:
        return run_on_hardware(phone.tree, request)
    except RuntimeError as error:
        raise ToolError(str(error)) from error


def _check_backend(path: str) -> None:
    if not Path(path).name == "libQnnHtp.so":
        raise ToolError(f"only libQnnHtp.so is emulated, not {path}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ToolError(f"{path} is no JSON: {error}") from None
    return content


def _input_lines(path: Path) -> list[list[str]]:
    lines = [line.split() for line in path.read_text().splitlines()]
    lines = [words for words in lines if words and not words[0].startswith(("#", "%"))]
    if not lines:
        raise ToolError(f"{path} lists no input")
    return lines


def _check_config(path: Path) -> None:
    try:
        extensions = json.loads(path.read_text())["backend_extensions"]
        nested = Path(extensions["config_file_path"])
        json.loads(nested.read_text())
    except (ValueError, KeyError, TypeError) as error:
        raise ToolError(f"{path} is no backend-extension configuration: {error}") from None


def _infer(
    runtime: OrtQnnRuntime,
    context: Context,
    lines: list[list[str]],
    count: int,
    options: argparse.Namespace,
) -> None:
    kept = count if options.keep_num_outputs is None else min(count, options.keep_num_outputs)
    if options.output_dir.exists():
        shutil.rmtree(options.output_dir)
    options.output_dir.mkdir(parents=True)
    for index in range(kept):
        words = lines[index % len(lines)]
        outputs = _outputs(runtime, context, words, native=options.use_native_input_files)
        folder = options.output_dir / f"Result_{index}"
        folder.mkdir()
        for name, array in outputs.items():
            native = options.use_native_output_files and array.dtype != np.float32
            data = array if options.use_native_output_files else array.astype(np.float32)
            stem = f"{_file_name(name)}_native" if native else _file_name(name)
            (folder / f"{stem}.raw").write_bytes(np.ascontiguousarray(data).tobytes())
    (options.output_dir / "execution_metadata.yaml").write_text(
        f"{STAMP}\ninferences_completed: {count}\noutputs_kept: {kept}\n"
        f"context: {options.retrieve_context.name}\nperf_profile: {options.perf_profile}\n"
    )


def _outputs(
    runtime: OrtQnnRuntime, context: Context, words: list[str], *, native: bool
) -> Mapping[str, Array]:
    """Of one line of the input list, computed once per context and content of its files."""
    digest = hashlib.sha256(f"{native} {words}".encode())
    for path in (context.binary, *(Path(word.rpartition(":=")[2]) for word in words)):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    cached = _CACHE / f"{digest.hexdigest()}.npz"
    try:
        with np.load(cached, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (FileNotFoundError, ValueError, zipfile.BadZipFile):
        pass
    if runtime.pid is None:
        runtime.load(context)
    outputs = runtime.outputs(_feed(words, runtime.inputs(), native=native))
    cached.parent.mkdir(exist_ok=True)
    tmp = cached.with_suffix(".tmp")
    with tmp.open("wb") as out:
        np.savez(out, **outputs)  # type: ignore[arg-type]
    tmp.replace(cached)
    return outputs


def _feed(
    words: list[str], wanted: dict[str, tuple[str, tuple[int, ...]]], *, native: bool
) -> dict[str, Array]:
    """One line of the input list: `name:=path` in any order, or paths in the graph's order."""
    if len(words) != len(wanted):
        raise ToolError(f"the graph has {len(wanted)} inputs, the list names {len(words)}")
    paths = {}
    for position, word in zip(wanted, words, strict=True):
        name, separator, path = word.partition(":=")
        paths[name if separator else position] = path if separator else word
    feed: dict[str, Array] = {}
    for name, (kind, shape) in wanted.items():
        if name not in paths:
            raise ToolError(f"the input list does not name {name}")
        dtype = np.dtype(_DTYPES[kind])
        stored = dtype if native else np.dtype(np.float32)
        data = Path(paths[name]).read_bytes()
        expected = int(np.prod(shape)) * stored.itemsize
        if len(data) != expected:
            raise ToolError(f"{paths[name]} has {len(data)} bytes, {name} needs {expected}")
        feed[name] = np.frombuffer(data, stored).reshape(shape).astype(dtype)
    return feed


def _file_name(tensor: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", tensor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
