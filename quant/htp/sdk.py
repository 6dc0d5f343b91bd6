"""Compile with the user's QAIRT SDK."""

from __future__ import annotations

from collections.abc import Callable

from quant.errors import unknown_name
from quant.htp.compile import Compiled, compile_context

BACKENDS = ("auto", "ort")


def choose_compiler(name: str) -> Callable[..., Compiled]:
    if name not in BACKENDS:
        raise unknown_name("back end", name, BACKENDS)
    return compile_context
