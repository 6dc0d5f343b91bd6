"""A float model with static shapes, as every method takes it, and its way from and to disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx_ir

from quant import _io
from quant.errors import UserError


@dataclass(frozen=True)
class TensorSpec:
    """One model input or output: numpy dtype name, static shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Interface:
    """The inputs of a graph of which nothing else is known."""

    inputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Model:
    """An ONNX graph at opset 21 or later with static shapes.

    `fingerprint` is a sha256 over graph and weights: the same content under another path, or with
    its weights in an external file, has the same fingerprint. Treat `ir` as read-only; work on
    `clone()`.
    """

    ir: onnx_ir.Model
    name: str
    fingerprint: str

    @cached_property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(_spec(v) for v in self.ir.graph.inputs)

    @cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(_spec(v) for v in self.ir.graph.outputs)

    def clone(self) -> onnx_ir.Model:
        """A graph to edit; the weight arrays are shared until one is replaced."""
        return self.ir.clone()


def wrap(graph: onnx_ir.Model, name: str) -> Model:
    """A Model around an edited graph: shapes inferred again, new fingerprint."""
    _io.infer_shapes(graph)
    return Model(graph, name, _io.content_hash(graph))


def load(path: Path, *, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> Model:
    """Read a float .onnx, .pt2 (torch.export) or TorchScript .pt file.

    Raises UserError for a missing, truncated or foreign file, a dynamic input, NaN or Inf weights
    (named), an opset below 11, an empty graph, or an already quantized one.
    """
    model, quantized = load_graph(path, input_shapes or {})
    if quantized:
        raise UserError(
            f"{Path(path).name} is already quantized: it holds QuantizeLinear or integer "
            "operators.",
            "Give the float model to quantize; `qhost bench --model-path` measures this one as is.",
        )
    return model


def load_graph(path: Path, input_shapes: Mapping[str, tuple[int, ...]]) -> tuple[Model, bool]:
    """The model at `path`, as `load` reads it, and whether it is already quantized."""
    path = Path(path)
    if path.suffix in {".pt2", ".pt", ".pth"}:
        from quant.torch_import import load_torch

        proto = load_torch(path, input_shapes)
        input_shapes = {}
    else:
        proto = _io.read_proto(path)
    # Exporters write <what it is>/model.onnx: the folder then tells more than the file.
    name = path.stem if path.stem != "model" else path.resolve().parent.name
    graph = _io.to_ir(_io.convert_opset(proto, path.name), path.name)
    _io.fix_input_shapes(graph, input_shapes, path.name)
    _io.check_content(graph, path.name)
    return wrap(graph, name), _io.is_quantized(graph)


def save(model: Model, path: Path) -> None:
    """Write the model as .onnx (above 1.5 GB with a .data file beside it), whole or not at all."""
    _io.write_model(model.ir, Path(path))


def _spec(value: onnx_ir.Value) -> TensorSpec:
    dtype = value.dtype
    shape = value.shape
    if value.name is None or dtype is None or shape is None:
        raise UserError(
            f"The type of {value.name!r} cannot be inferred.", "Export the model with shapes."
        )
    dims = tuple(d if isinstance(d, int) else -1 for d in shape)
    return TensorSpec(value.name, dtype.numpy().name, dims)
