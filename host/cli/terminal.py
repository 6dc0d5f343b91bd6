"""The two streams of the command line: results on stdout, progress on stderr.

Names of variants hold brackets (`sparse[sparsity=0.5]`), which rich would take for its markup and
swallow: it is off here, and nothing else in host.cli makes a Console.
"""

from __future__ import annotations

from rich.console import Console


def stdout(width: int | None = None) -> Console:
    """For results."""
    return Console(markup=False, highlight=False, width=width)


def stderr() -> Console:
    """For progress and remarks."""
    return Console(stderr=True, markup=False, highlight=False)
