"""PyTorch in: .pt2 (torch.export) and TorchScript .pt files, through torch's own ONNX exporter.

torch comes with the extra `train`; it is imported here and nowhere else on the loading path.
"""

from __future__ import annotations

import io
import logging
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from quant.errors import UserError

_OPSET = 18  # the lowest the torch.export path writes; converted upward with every other model


def load_torch(path: Path, input_shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """The ONNX form of a .pt2 program or a TorchScript module.

    Raises UserError without torch, for a bare state_dict (it holds no graph), or for TorchScript
    without input shapes.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist.", "Check --model-path.")
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"Reading {path.name} needs PyTorch.", "Install it: pip install 'qhost[train]'."
        ) from error
    if path.suffix == ".pt2":
        return _exported(torch, path)
    return _scripted(torch, path, input_shapes)


def _exported(torch: Any, path: Path) -> onnx.ModelProto:
    try:
        with _silent(logging.getLogger("torch.export")):
            program = torch.export.load(str(path))
    except (RuntimeError, ValueError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError) as e:
        raise UserError(
            f"{path.name} is not a torch.export program: {_first(e)}",
            "Write it with torch.export.save.",
        ) from e
    args, kwargs = program.example_inputs or ((), {})
    return _to_onnx(torch, program.module(), tuple(args), dict(kwargs), None, path)


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    """torch logs the traceback of an error that it also raises."""
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _scripted(
    torch: Any, path: Path, input_shapes: Mapping[str, tuple[int, ...]]
) -> onnx.ModelProto:
    try:
        module = torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise UserError(_not_script(torch, path), "Save it with torch.export.save.") from error
    module.eval()
    names = [i.debugName() for i in module.graph.inputs()][1:]
    missing = [n for n in names if n not in input_shapes]
    if missing:
        raise UserError(
            f"{path.name} does not record the shape of its input {missing[0]!r}.",
            f"Give it, for example: --input-shape {missing[0]}:1,3,224,224",
        )
    arguments = tuple(torch.zeros(input_shapes[n]) for n in names)
    return _to_onnx(torch, module, arguments, {}, names, path)


def _not_script(torch: Any, path: Path) -> str:
    try:
        content = torch.load(str(path), map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - unpickling bytes that are no pickle raises anything
        return f"{path.name} is neither TorchScript nor a torch.export program."
    if isinstance(content, dict):
        return (
            f"{path.name} is a bare state_dict ({len(content)} tensors): it holds weights "
            "but no graph to run."
        )
    return f"{path.name} holds a {type(content).__name__}, not a model graph."


def _to_onnx(
    torch: Any,
    module: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: list[str] | None,
    path: Path,
) -> onnx.ModelProto:
    buffer = io.BytesIO()
    try:
        torch.onnx.export(
            module,
            args,
            buffer,
            kwargs=kwargs or None,
            input_names=names,
            opset_version=17 if names else _OPSET,
            dynamo=False,
        )
    except Exception as error:
        raise UserError(
            f"torch cannot export {path.name} to ONNX: {_first(error)}",
            "Export it to ONNX yourself and give the .onnx file.",
        ) from error
    return onnx.load_from_string(buffer.getvalue())


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
