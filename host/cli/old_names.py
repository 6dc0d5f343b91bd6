"""Commands of the guide that qhost came from, and what each is called now."""

from __future__ import annotations

from collections.abc import Sequence

# First words of an old command line -> the new ones. docs/mapping.md explains each.
OLD_NAMES = {
    "benchmark": "bench",
    "cluster": "quantize cluster",
    "hybrid": "quantize hybrid",
    "per-channel": "quantize per-channel",
    "qat": "quantize qat",
    "sparse": "quantize sparse",
    "advanced_quantization": "quantize",
    "comparison_tools": "compare-all",
    "hardware_optimizations": "optimize",
    "benchmark_with_db_integration": "bench",
    "benchmark_db_query": "query",
    "compare": "compare-all",
    "device": "devices",
    "db-query": "query",
}


def new_name(args: Sequence[str]) -> str:
    """The command that took the place of an old one; empty when the words are no old name.

    `advanced_quantization cluster ...` keeps its second word: `quantize cluster`.
    """
    words = [a for a in args if not a.startswith("-")][:2]
    if not words:
        return ""
    first = words[0].removesuffix(".py").replace("-", "_")
    found = OLD_NAMES.get(words[0]) or OLD_NAMES.get(first)
    if found is None:
        return ""
    if first == "advanced_quantization" and len(words) > 1:
        return f"quantize {words[1]}"
    if first in {"comparison_tools", "hardware_optimizations"} and len(words) > 1:
        return words[1]
    if first == "benchmark_db_query" and "--report" in args:
        return "report"
    return found
