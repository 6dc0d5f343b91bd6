"""Writing a report: whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from host.errors import UserError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, then rename: no half file is ever seen.

    Raises:
        UserError: the folder cannot be made or the file cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"Cannot write {path}: {error.strerror or error}.", "Choose another output path."
        ) from error


def check_writable(folder: Path, option: str = "--output-dir") -> None:
    """Raises UserError where no file can be written into `folder`; leaves it as it was.

    Asked before the hours of work whose report goes there.
    """
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for made in missing:
            made.rmdir()
    except OSError as error:
        raise UserError(
            f"Nothing can be written into {folder}: {error.strerror or error}.",
            f"Choose another {option}.",
        ) from error


def check_output(path: Path, source: Path, suffixes: tuple[str, ...]) -> None:
    """Raises UserError where `path`, to be made of `source`, cannot be written or must not be.

    Asked before the work; writing over the source would lose it.
    """
    if path.suffix not in suffixes:
        raise UserError(
            f"--output-path {path} does not end in {' or '.join(suffixes)}.",
            "OUT.qnn is a compiled artifact"
            + (", OUT.onnx a QDQ graph." if ".onnx" in suffixes else "."),
        )
    if path.is_dir():
        raise UserError(f"--output-path {path} is a directory.", "Name a file in it.")
    if path.exists() and source.exists() and path.samefile(source):
        raise UserError(f"{path} is the input itself.", "Choose another --output-path.")
    check_writable(path.absolute().parent, "--output-path")


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
