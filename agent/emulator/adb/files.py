"""Where a path that the host names lies on the real file system.

In the sandbox the device's root *is* `/` and nothing else is visible, so a path is itself. Where
the kernel allows no sandbox, `confined` resolves it by hand, as RESOLVE_IN_ROOT of openat2 does.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

Resolve = Callable[[str, bool], Path]  # (device path, follow a final symlink) -> real path

MAX_SYMLINKS = 40


def direct(path: str, follow: bool) -> Path:
    """The sandbox's resolver; relative names start at the root."""
    return Path("/", path)


def confined(root: Path) -> Resolve:
    """A resolver that never leaves `root`: `..` stops at it, symlinks are followed inside it.

    OSError (ELOOP) for a loop of symlinks.
    """
    root = root.resolve()

    def resolve(path: str, follow: bool) -> Path:
        pending = [part for part in path.split("/") if part not in ("", ".")][::-1]
        here: list[str] = []
        links = 0
        while pending:
            part = pending.pop()
            if part == "..":
                here = here[:-1]
                continue
            candidate = root.joinpath(*here, part)
            if (pending or follow) and candidate.is_symlink():
                links += 1
                if links > MAX_SYMLINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = str(candidate.readlink())
                if target.startswith("/"):
                    here = []
                pending += [p for p in target.split("/") if p not in ("", ".")][::-1]
                continue
            here.append(part)
        return root.joinpath(*here)

    return resolve
