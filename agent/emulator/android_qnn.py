"""A stand-in for qnn-net-run on the emulated device: its command line, its files, our numerics.

The command line and the layout of the output are those of the tool's public documentation; the
model runs in Qualcomm's HTP emulator. No QAIRT SDK was met when this was written. Whatever it
writes is stamped: execution_metadata.yaml says `emulated: true`, and so does its first line.

Unlike the real tool it needs the context's ONNX wrapper beside the binary (`<name>.onnx`, as in an
artifact), because that is what the HTP emulator loads. Each distinct input runs once; repetitions
replay it. It tells no time: the emulated device's time is the agent's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agent.emulator.phone import emulated_phone
from agent.errors import AgentError
from agent.runtime import Array, Context
from agent.runtime.ort_qnn import PERF_PROFILES, OrtQnnRuntime
from agent.socs import SOCS

STAMP = "emulated: true  # Qualcomm's HTP emulator on another machine; no figure here is measured"
_DTYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8, "tensor(uint16)": np.uint16, "tensor(int16)": np.int16,
    "tensor(int32)": np.int32, "tensor(uint32)": np.uint32, "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}  # fmt: skip


class ToolError(Exception):
    """What the tool prints before it ends with code 1."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    try:
        _run(options)
    except (ToolError, OSError) as error:
        sys.stderr.write(f"qnn-net-run (EMULATED): {error}\n")
        return 1
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
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


def _run(options: argparse.Namespace) -> None:
    phone = emulated_phone(Path("/"))
    if phone is None:
        raise ToolError("this is the stand-in of an emulated device, and this is none")
    soc_model = SOCS[phone.soc].soc_model
    if not Path(options.backend).name == "libQnnHtp.so":
        raise ToolError(f"only libQnnHtp.so is emulated, not {options.backend}")
    if options.duration is not None or options.profiling_level:
        raise ToolError("the emulated tool tells no time: --duration and --profiling_level")
    if options.config_file:
        _check_config(options.config_file)
    wrapper = options.retrieve_context.with_suffix(".onnx")
    for path in (options.retrieve_context, wrapper):
        if not path.is_file():
            raise ToolError(f"no file {path}")
    lines = [line.split() for line in options.input_list.read_text().splitlines()]
    lines = [words for words in lines if words and not words[0].startswith(("#", "%"))]
    if not lines:
        raise ToolError(f"{options.input_list} lists no input")
    runtime = OrtQnnRuntime(options.output_dir.with_suffix(".log"))
    try:
        runtime.load(
            Context(wrapper, options.retrieve_context, "", soc_model, options.perf_profile)
        )
        _infer(runtime, lines, options)
    except AgentError as error:
        raise ToolError(str(error)) from error
    finally:
        runtime.close()


def _check_config(path: Path) -> None:
    try:
        extensions = json.loads(path.read_text())["backend_extensions"]
        nested = Path(extensions["config_file_path"])
        json.loads(nested.read_text())
    except (ValueError, KeyError, TypeError) as error:
        raise ToolError(f"{path} is no backend-extension configuration: {error}") from None


def _infer(runtime: OrtQnnRuntime, lines: list[list[str]], options: argparse.Namespace) -> None:
    wanted = runtime.inputs()
    count = options.num_inferences or len(lines)
    kept = count if options.keep_num_outputs is None else min(count, options.keep_num_outputs)
    if options.output_dir.exists():
        shutil.rmtree(options.output_dir)
    options.output_dir.mkdir(parents=True)
    known: dict[str, dict[str, Array]] = {}
    for index in range(kept):
        words = lines[index % len(lines)]
        feed = _feed(words, wanted, native=options.use_native_input_files)
        key = hashlib.sha256(b"".join(array.tobytes() for array in feed.values())).hexdigest()
        if key not in known:
            known[key] = runtime.outputs(feed)
        folder = options.output_dir / f"Result_{index}"
        folder.mkdir()
        for name, array in known[key].items():
            data = array if options.use_native_output_files else array.astype(np.float32)
            (folder / f"{_file_name(name)}.raw").write_bytes(np.ascontiguousarray(data).tobytes())
    (options.output_dir / "execution_metadata.yaml").write_text(
        f"{STAMP}\ninferences: {count}\noutputs_kept: {kept}\n"
        f"context: {options.retrieve_context.name}\nperf_profile: {options.perf_profile}\n"
    )


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
    sys.exit(main())
