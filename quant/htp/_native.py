"""The compiler's C interface, for graph options that onnxruntime-qnn does not expose.

`python -P -m quant.htp._native` in a process of its own: a wrong table layout ends in a crash.
One JSON object on stdin {libs, dlc, soc_model, optimizations}; context.bin is written into the
working directory, the compiler's log goes to stderr, one JSON object is the answer.

The layouts and indices below belong to one version of the interface (CORE_API), which is checked
before anything is called. How the graph options are numbered is not documented; quant.htp.sparse
verifies every context made with them.
"""

from __future__ import annotations

import ctypes as c
import json
import os
import sys
from pathlib import Path
from typing import Any

from quant.htp._worker import die_with_parent

CORE_API = (2, 40)

_TABLE_SIZE = 75
_BACKEND_CREATE, _BACKEND_FREE = 1, 8
_CONTEXT_CREATE, _CONTEXT_BINARY_SIZE, _CONTEXT_BINARY, _CONTEXT_FREE = 9, 11, 12, 14
_GRAPH_SET_CONFIG, _GRAPH_FINALIZE, _GRAPH_RETRIEVE = 17, 19, 20
_LOG_CREATE = 25
_DEVICE_CREATE, _DEVICE_FREE = 40, 43
_SYSTEM_DLC_CREATE, _SYSTEM_DLC_COMPOSE = 8, 10
_LOG_VERBOSE = 4
_GRAPH_INFO_VERSION = 3
_CUSTOM = 0  # graph and device configurations: "the back end's own"
_OPTIMIZATION = 1  # HTP graph configuration: an optimization type and its value


class _Version(c.Structure):
    _fields_ = [("major", c.c_uint32), ("minor", c.c_uint32), ("patch", c.c_uint32)]


class _Interface(c.Structure):
    _fields_ = [
        ("backend_id", c.c_uint32),
        ("name", c.c_char_p),
        ("core", _Version),
        ("backend", _Version),
        ("functions", c.c_void_p * _TABLE_SIZE),
    ]


class _System(c.Structure):
    _fields_ = [
        ("id", c.c_uint32),
        ("name", c.c_char_p),
        ("api", _Version),
        ("functions", c.c_void_p * 40),
    ]


class _Config(c.Structure):
    _fields_ = [("option", c.c_uint32), ("custom", c.c_void_p)]


class _SocConfig(c.Structure):
    _fields_ = [("option", c.c_uint32), ("_padding", c.c_uint32), ("soc_model", c.c_uint64 * 4)]


class _Optimization(c.Structure):
    _fields_ = [
        ("option", c.c_uint32),
        ("_padding", c.c_uint32),
        ("type", c.c_uint32),
        ("value", c.c_float),
        ("_rest", c.c_uint8 * 64),
    ]


class _GraphInfo(c.Structure):
    _fields_ = [("version", c.c_uint32), ("_padding", c.c_uint32), ("name", c.c_char_p)]


_LOG_CALLBACK = c.CFUNCTYPE(None, c.c_char_p, c.c_uint32, c.c_uint64, c.c_void_p)


class _Failure(Exception):
    pass


def _call(function: Any, what: str, types: tuple[Any, ...], *args: Any) -> None:
    code = c.CFUNCTYPE(c.c_uint64, *types)(function)(*args)
    if code:
        raise _Failure(f"{what} failed with code {code}")


def _provider(path: Path, symbol: str, kind: type[Any]) -> Any:
    get = getattr(c.CDLL(str(path), mode=c.RTLD_GLOBAL), symbol)
    get.restype = c.c_uint64
    table, count = c.POINTER(c.POINTER(kind))(), c.c_uint32()
    if get(c.byref(table), c.byref(count)) or not count.value:
        raise _Failure(f"{path.name} offers no interface")
    return table[0].contents


def _logger() -> Any:
    """A callback that writes the compiler's messages to stderr as the provider would."""
    format_message = c.CDLL(None).vsnprintf
    format_message.argtypes = [c.c_void_p, c.c_size_t, c.c_char_p, c.c_void_p]

    def log(text: bytes, level: int, timestamp: int, arguments: Any) -> None:
        buffer = c.create_string_buffer(4096)
        format_message(buffer, len(buffer), text, arguments)
        os.write(2, b"QnnLogging] " + buffer.value + b"\n")

    return _LOG_CALLBACK(log)


def _configs(structure: c.Structure) -> tuple[Any, _Config]:
    """A null-terminated list with one custom configuration, and what must stay alive with it."""
    config = _Config(_CUSTOM, c.cast(c.pointer(structure), c.c_void_p))
    configs = (c.POINTER(_Config) * 2)()
    configs[0] = c.pointer(config)
    return configs, config


def compile_dlc(libs: Path, dlc: Path, soc_model: int, optimizations: dict[int, float]) -> bytes:
    """The context binary of the graph in `dlc`. `optimizations`: HTP optimization type -> value."""
    qnn = _provider(libs / "libQnnHtp.so", "QnnInterface_getProviders", _Interface)
    if (qnn.core.major, qnn.core.minor) != CORE_API:
        raise _Failure(f"core API {qnn.core.major}.{qnn.core.minor} is not {CORE_API}")
    system = _provider(libs / "libQnnSystem.so", "QnnSystemInterface_getProviders", _System)
    f, p, u32, u64 = qnn.functions, c.c_void_p, c.c_uint32, c.c_uint64
    out = c.POINTER(p)
    logger, log = _logger(), p()
    _call(f[_LOG_CREATE], "log", (_LOG_CALLBACK, u32, out), logger, _LOG_VERBOSE, c.byref(log))
    backend, device, context = p(), p(), p()
    _call(f[_BACKEND_CREATE], "backend", (p, p, out), log, None, c.byref(backend))
    soc = _SocConfig(option=0)
    soc.soc_model[0] = soc_model
    configs, keep = _configs(soc)
    _call(f[_DEVICE_CREATE], "device", (p, p, out), log, c.cast(configs, p), c.byref(device))
    types: tuple[Any, ...] = (p, p, p, out)
    _call(f[_CONTEXT_CREATE], "context", types, backend, device, None, c.byref(context))

    handle, graphs, count = p(), p(), u32()
    types = (p, c.c_char_p, out)
    dlc_create = system.functions[_SYSTEM_DLC_CREATE]
    _call(dlc_create, "reading the DLC", types, None, str(dlc).encode(), c.byref(handle))
    types = (p, p, u32, p, p, _Interface, u32, out, c.POINTER(u32))
    _call(
        system.functions[_SYSTEM_DLC_COMPOSE],
        "composing the graph",
        types,
        *(handle, None, 0, backend, context, qnn),
        *(_GRAPH_INFO_VERSION, c.byref(graphs), c.byref(count)),
    )
    if count.value != 1:
        raise _Failure(f"the DLC holds {count.value} graphs, not one")
    name = c.cast(graphs, c.POINTER(_GraphInfo))[0].name
    graph = p()
    _call(f[_GRAPH_RETRIEVE], "graph", (p, c.c_char_p, out), context, name, c.byref(graph))
    for kind, value in optimizations.items():
        option = _Optimization(option=_OPTIMIZATION, type=kind, value=value)
        configs, keep = _configs(option)
        _call(f[_GRAPH_SET_CONFIG], "graph option", (p, p), graph, c.cast(configs, p))
    _call(f[_GRAPH_FINALIZE], "finalization", (p, p, p), graph, None, None)
    size, written = u64(), u64()
    types = (p, c.POINTER(u64))
    _call(f[_CONTEXT_BINARY_SIZE], "binary size", types, context, c.byref(size))
    buffer = c.create_string_buffer(size.value)
    types = (p, p, u64, c.POINTER(u64))
    _call(f[_CONTEXT_BINARY], "binary", types, context, buffer, size, c.byref(written))
    del keep
    return buffer.raw[: written.value]


def main() -> None:
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    die_with_parent()
    request = json.load(sys.stdin)
    optimizations = {int(k): float(v) for k, v in request["optimizations"].items()}
    result: dict[str, object] = {"ok": True}
    try:
        binary = compile_dlc(
            Path(request["libs"]), Path(request["dlc"]), request["soc_model"], optimizations
        )
        Path("context.bin").write_bytes(binary)
    except (_Failure, OSError) as error:
        result = {"ok": False, "error": str(error)}
    answer.write(json.dumps(result))
    answer.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
