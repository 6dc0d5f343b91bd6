"""Content-addressed cache keys: same inputs, options, toolchain and code = same artifact."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TOOLCHAIN = ("onnxruntime", "onnxruntime-qnn", "onnx", "onnx-ir", "numpy")


@functools.cache
def toolchain_versions() -> dict[str, str]:
    """Version of every package that decides the bytes of an artifact."""
    out = {}
    for name in TOOLCHAIN:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = "absent"
    return out


@functools.cache
def code_fingerprint() -> str:
    """sha256 over the sources of this package: changed code never serves a stale artifact."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*")):
        if path.suffix in {".py", ".toml"}:
            digest.update(path.relative_to(root).as_posix().encode() + b"\0")
            digest.update(path.read_bytes())
    return digest.hexdigest()


def key(parts: Mapping[str, Any]) -> str:
    """sha256 of `parts` (JSON values), the toolchain's versions and the code."""
    whole = {"parts": parts, "toolchain": toolchain_versions(), "code": code_fingerprint()}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
