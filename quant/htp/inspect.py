"""Metadata of a QNN context binary, read through the toolchain's own system library.

The structures below describe the system library's ABI (System API 1.x): only the fields that are
read, in the order and with the sizes the library uses. Another major version is refused.
"""

from __future__ import annotations

import ctypes as c
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from quant.errors import ToolchainError, UserError

_UNDEFINED = 0x7FFFFFFF

# QNN data types by code, in numpy's words where numpy has one.
_DTYPES = {
    0x0008: "int8",
    0x0016: "int16",
    0x0032: "int32",
    0x0064: "int64",
    0x0108: "uint8",
    0x0116: "uint16",
    0x0132: "uint32",
    0x0164: "uint64",
    0x0216: "float16",
    0x0232: "float32",
    0x0304: "sfixed4",
    0x0308: "sfixed8",
    0x0316: "sfixed16",
    0x0332: "sfixed32",
    0x0404: "ufixed4",
    0x0408: "ufixed8",
    0x0416: "ufixed16",
    0x0432: "ufixed32",
    0x0508: "bool",
}


@dataclass(frozen=True)
class TensorEncoding:
    """Quantization of a graph input or output: real = scale * (stored + offset)."""

    bits: int | None
    scale: tuple[float, ...]
    offset: tuple[int, ...]
    axis: int | None


@dataclass(frozen=True)
class ContextTensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    encoding: TensorEncoding | None


@dataclass(frozen=True)
class ContextGraph:
    """One graph of a context. vtcm_bytes is what the binary records, not what the part has."""

    name: str
    inputs: tuple[ContextTensor, ...]
    outputs: tuple[ContextTensor, ...]
    spill_fill_bytes: int
    vtcm_bytes: int
    optimization_level: int
    hvx_threads: int
    dlbc: bool


@dataclass(frozen=True)
class ContextInfo:
    """What a context binary says of itself. arch is the Hexagon version (75 for v75)."""

    soc_model: int
    arch: int
    build_id: str
    core_api: str
    backend_api: str
    blob_version: str
    graphs: tuple[ContextGraph, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class _Version(c.Structure):
    _fields_ = [("major", c.c_uint32), ("minor", c.c_uint32), ("patch", c.c_uint32)]

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


class _ScaleOffset(c.Structure):
    _fields_ = [("scale", c.c_float), ("offset", c.c_int32)]


class _AxisScaleOffset(c.Structure):
    _fields_ = [("axis", c.c_int32), ("count", c.c_uint32), ("items", c.POINTER(_ScaleOffset))]


class _BitwidthScaleOffset(c.Structure):
    _fields_ = [("bits", c.c_uint32), ("scale", c.c_float), ("offset", c.c_int32)]


class _BitwidthAxisScaleOffset(c.Structure):
    _fields_ = [
        ("bits", c.c_uint32),
        ("axis", c.c_int32),
        ("count", c.c_uint32),
        ("scales", c.POINTER(c.c_float)),
        ("offsets", c.POINTER(c.c_int32)),
    ]


class _Encoding(c.Union):
    _fields_ = [
        ("plain", _ScaleOffset),
        ("axis", _AxisScaleOffset),
        ("bw", _BitwidthScaleOffset),
        ("bw_axis", _BitwidthAxisScaleOffset),
    ]


class _QuantizeParams(c.Structure):
    _fields_ = [("definition", c.c_uint32), ("kind", c.c_uint32), ("u", _Encoding)]


class _ClientBuffer(c.Structure):
    _fields_ = [("data", c.c_void_p), ("size", c.c_uint32)]


class _TensorBody(c.Structure):
    # The second version of the structure; the first is its beginning.
    _fields_ = [
        ("id", c.c_uint32),
        ("name", c.c_char_p),
        ("type", c.c_uint32),
        ("format", c.c_uint32),
        ("dtype", c.c_uint32),
        ("quantize", _QuantizeParams),
        ("rank", c.c_uint32),
        ("dims", c.POINTER(c.c_uint32)),
        ("mem_type", c.c_uint32),
        ("mem", _ClientBuffer),
        ("dynamic", c.c_void_p),
        ("sparse", c.c_uint32 * 3),
        ("produced", c.c_uint8),
    ]


class _Tensor(c.Structure):
    _fields_ = [("version", c.c_uint32), ("body", _TensorBody)]


class _GraphBody(c.Structure):
    # The third version of the structure; the earlier ones are its beginning.
    _fields_ = [
        ("name", c.c_char_p),
        ("input_count", c.c_uint32),
        ("inputs", c.POINTER(_Tensor)),
        ("output_count", c.c_uint32),
        ("outputs", c.POINTER(_Tensor)),
        ("updatable_count", c.c_uint32),
        ("updatable", c.POINTER(_Tensor)),
        ("htp_size", c.c_uint32),
        ("htp", c.c_void_p),
        ("start_op", c.c_uint32),
        ("end_op", c.c_uint32),
    ]


class _Graph(c.Structure):
    _fields_ = [("version", c.c_uint32), ("body", _GraphBody)]


class _BinaryInfo(c.Structure):
    # The third version, which is what toolchains since 2.2x write.
    _fields_ = [
        ("version", c.c_uint32),
        ("_padding", c.c_uint32),  # what follows is a union aligned to 8
        ("backend_id", c.c_uint32),
        ("build_id", c.c_char_p),
        ("core", _Version),
        ("backend", _Version),
        ("soc_version", c.c_char_p),
        ("blob", _Version),
        ("blob_size", c.c_uint64),
        ("context_tensor_count", c.c_uint32),
        ("context_tensors", c.POINTER(_Tensor)),
        ("graph_count", c.c_uint32),
        ("graphs", c.POINTER(_Graph)),
        ("platform", c.c_void_p),
        ("meta_size", c.c_uint32),
        ("meta", c.c_void_p),
        ("soc_model", c.c_uint32),
    ]


class _HtpContext(c.Structure):
    _fields_ = [("version", c.c_uint32), ("arch", c.c_uint32)]


class _HtpGraph(c.Structure):
    _fields_ = [
        ("version", c.c_uint32),
        ("_padding", c.c_uint32),  # what follows is a union aligned to 8
        ("spill_fill", c.c_uint64),
        ("vtcm", c.c_uint32),
        ("optimization", c.c_uint32),
        ("dlbc", c.c_uint8),
        ("hvx", c.c_uint64),
    ]


class _Provider(c.Structure):
    _fields_ = [
        ("id", c.c_uint32),
        ("name", c.c_char_p),
        ("api", _Version),
        ("functions", c.c_void_p * 40),
    ]


_CREATE, _GET_BINARY_INFO, _FREE = 0, 1, 3


@cache
def _system() -> _Provider:
    try:
        import onnxruntime_qnn
    except ImportError as error:
        raise ToolchainError("onnxruntime-qnn is not installed: no QNN system library.") from error
    path = Path(onnxruntime_qnn.__file__).parent / "libQnnSystem.so"
    try:
        get_providers = c.CDLL(str(path)).QnnSystemInterface_getProviders
    except (OSError, AttributeError) as error:
        raise ToolchainError(f"Cannot use the QNN system library: {error}.") from error
    get_providers.restype = c.c_uint64
    table = c.POINTER(c.POINTER(_Provider))()
    count = c.c_uint32()
    if get_providers(c.byref(table), c.byref(count)) != 0 or not count.value:
        raise ToolchainError("The QNN system library offers no interface.")
    provider: _Provider = table[0].contents
    if provider.api.major != 1:
        raise ToolchainError(f"QNN system API {provider.api} is not the 1.x this reads.")
    return provider


def _function(index: int, *types: Any) -> Any:
    return c.CFUNCTYPE(c.c_uint64, *types)(_system().functions[index])


def _text(value: bytes | None) -> str:
    return value.decode(errors="replace") if value else ""


def _encoding(q: _QuantizeParams) -> TensorEncoding | None:
    if q.definition == _UNDEFINED or q.kind == _UNDEFINED:
        return None
    if q.kind == 0:
        return TensorEncoding(None, (q.u.plain.scale,), (q.u.plain.offset,), None)
    if q.kind == 1:
        items = [q.u.axis.items[i] for i in range(q.u.axis.count)]
        scales, offsets = tuple(i.scale for i in items), tuple(i.offset for i in items)
        return TensorEncoding(None, scales, offsets, q.u.axis.axis)
    if q.kind == 2:
        return TensorEncoding(q.u.bw.bits, (q.u.bw.scale,), (q.u.bw.offset,), None)
    if q.kind == 3:
        p = q.u.bw_axis
        offsets = tuple(p.offsets[i] for i in range(p.count)) if p.offsets else (0,) * p.count
        return TensorEncoding(p.bits, tuple(p.scales[i] for i in range(p.count)), offsets, p.axis)
    return None  # block encodings: weights only, never a graph's input or output


def _tensor(tensor: _Tensor) -> ContextTensor:
    body = tensor.body
    return ContextTensor(
        name=_text(body.name),
        dtype=_DTYPES.get(body.dtype, f"qnn 0x{body.dtype:04x}"),
        shape=tuple(body.dims[i] for i in range(body.rank)),
        encoding=_encoding(body.quantize),
    )


def _graph(graph: _Graph) -> ContextGraph:
    body = graph.body
    htp = _HtpGraph()
    if graph.version >= 3 and body.htp and body.htp_size >= c.sizeof(_HtpGraph):
        htp = c.cast(body.htp, c.POINTER(_HtpGraph)).contents
    return ContextGraph(
        name=_text(body.name),
        inputs=tuple(_tensor(body.inputs[i]) for i in range(body.input_count)),
        outputs=tuple(_tensor(body.outputs[i]) for i in range(body.output_count)),
        spill_fill_bytes=htp.spill_fill,
        vtcm_bytes=htp.vtcm,
        optimization_level=htp.optimization,
        hvx_threads=htp.hvx,
        dlbc=bool(htp.dlbc),
    )


def read_context(path: Path) -> ContextInfo:
    """Metadata of the context binary at `path`.

    Raises UserError where the file is missing or not a context binary of the HTP. The library
    checks the header only: damage inside the weights passes, so compare the sha256 first.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    handle = c.c_void_p()
    if _function(_CREATE, c.POINTER(c.c_void_p))(c.byref(handle)) != 0:
        raise ToolchainError("The QNN system library could not be initialised.")
    try:
        # The library keeps pointers into this buffer, so it must outlive the reading below.
        buffer = c.create_string_buffer(data, len(data)) if data else c.create_string_buffer(1)
        found = c.POINTER(_BinaryInfo)()
        size = c.c_uint64()
        rc = _function(
            _GET_BINARY_INFO,
            c.c_void_p,
            c.c_void_p,
            c.c_uint64,
            c.POINTER(c.POINTER(_BinaryInfo)),
            c.POINTER(c.c_uint64),
        )(handle, buffer, len(data), c.byref(found), c.byref(size))
        if rc != 0 or not found:
            raise UserError(
                f"{path} is not a QNN context binary (error {rc}).",
                "Give the .bin of a compiled context, or an intact .qnn.",
            )
        info = found.contents
        if info.version != 3:
            raise UserError(
                f"{path} was written by an old QNN toolchain (metadata version {info.version}).",
                "Compile the model again.",
            )
        arch = 0
        if info.meta and info.meta_size >= c.sizeof(_HtpContext):
            arch = c.cast(info.meta, c.POINTER(_HtpContext)).contents.arch
        return ContextInfo(
            soc_model=info.soc_model,
            arch=arch,
            build_id=_text(info.build_id),
            core_api=str(info.core),
            backend_api=str(info.backend),
            blob_version=str(info.blob),
            graphs=tuple(_graph(info.graphs[i]) for i in range(info.graph_count)),
        )
    finally:
        _function(_FREE, c.c_void_p)(handle)
