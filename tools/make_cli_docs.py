"""Write docs/cli.md, the reference of every verb and option, from the program itself.

python tools/make_cli_docs.py     A test fails when the committed file is not what this writes.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from host.cli import build_app

DOCS = Path(__file__).resolve().parent.parent / "docs"


def commands(group: Any, prefix: str = "qhost") -> Iterator[tuple[str, Any]]:
    """(full name, click command) of every leaf, in alphabetical order."""
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _kind(annotation: Any) -> str:
    """`list[Path]` -> "path, repeatable"; `int | None` -> "int"."""
    inner = [a for a in typing.get_args(annotation) if a is not type(None)]
    if typing.get_origin(annotation) is list:
        return f"{_kind(inner[0])}, repeatable"
    if inner:
        return _kind(inner[0])
    return str(getattr(annotation, "__name__", annotation)).lower()


def _parameter(parameter: Any) -> str:
    """One row: names, what it takes, default, help."""
    flag = getattr(parameter, "is_flag", False)
    names = ", ".join(f"`{n}`" for n in [*parameter.opts, *parameter.secondary_opts])
    if parameter.param_type_name == "argument":
        names = f"`{parameter.name.upper()}`"
    kind = "" if flag else _kind(parameter.type_descriptor.annotation)
    default = parameter.default
    shown = "" if default in (None, False, "", ()) or callable(default) else f"`{default}`"
    if parameter.required:
        shown = "required"
    text = _cell(getattr(parameter, "help", "") or "")
    return f"| {names} | {kind} | {shown} | {text} |"


def reference() -> str:
    """The whole of docs/cli.md."""
    group = typer.main.get_command(build_app())
    lines = [
        "# Command reference",
        "",
        "Made by `tools/make_cli_docs.py` from the program; a test keeps it current.",
        "Exit codes: 0 ok, 1 user error, 2 usage, 3 some or all jobs failed, 4 regression found, "
        "5 device or lab error, 70 internal error, 130 interrupted.",
        "`--debug` works anywhere and shows the traceback of an error.",
    ]
    for name, command in commands(group):
        lines += ["", f"## {name}", "", inspect.cleandoc(command.help or "")]
        rows = [_parameter(p) for p in command.params if p.name != "help" and not p.hidden]
        if rows:
            lines += ["", "| option | takes | default | |", "|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (DOCS / "cli.md").write_text(reference(), encoding="utf-8")
