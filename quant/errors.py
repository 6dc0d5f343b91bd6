"""Errors meant for the user: what is wrong, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. `message` says what is wrong, `hint` what to do; the CLI prints both, exit 1."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ToolchainError(Exception):
    """The QNN toolchain failed on input that should have worked (crash, missing library)."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> UserError:
    """An error for a name that is not in the table, naming the nearest ones."""
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(names)}."
    return UserError(f"Unknown {what} {name!r}.", hint)
