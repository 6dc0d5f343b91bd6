"""Training of quantized graphs: an ONNX graph as torch functions, fake quantization, fine-tuning.

torch is an extra (`pip install 'qhost[train]'`), imported inside functions only.
"""

from __future__ import annotations

import importlib.util

from quant.errors import UserError

INSTALL = "pip install 'qhost[train]'"


def missing() -> str:
    """Why training cannot run here, or ""."""
    return "" if importlib.util.find_spec("torch") else f"torch is not installed: {INSTALL}"


def require(what: str) -> None:
    """Raise UserError, naming the command that installs torch, where it is missing."""
    if missing():
        raise UserError(f"{what} needs torch, which is not installed.", f"Install it: {INSTALL}")
