"""Freed memory stays with the process while it trains.

Every step allocates and frees the same large arrays. glibc maps each of them anew, and faulting
their pages in costs several times the arithmetic that fills them.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

# malloc.h of glibc: parameters of mallopt, and what it starts with (mallopt(3)).
_TRIM_THRESHOLD, _TRIM_DEFAULT = -1, 128 * 1024
_MMAP_MAX, _MMAP_DEFAULT = -4, 65536
_NEVER = 2**31 - 1


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Inside, large arrays come from the heap and the heap does not shrink; nothing elsewhere
    than on glibc."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, _MMAP_DEFAULT)
        libc.mallopt(_TRIM_THRESHOLD, _TRIM_DEFAULT)
        libc.malloc_trim(0)
