"""Rows to Arrow: inserting by column is a thousand times faster than row by row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from enum import Enum
from typing import Any

import numpy as np
import pyarrow as pa

from host.store.rows import Block, RawBatch


def rows_table(rows: Sequence[Any], **extra: object) -> pa.Table:
    """Dataclass rows of one type as a table; `extra` columns are constant and come first."""
    columns: dict[str, list[object]] = {name: [value] * len(rows) for name, value in extra.items()}
    for field in fields(rows[0]):
        columns[field.name] = [_plain(getattr(row, field.name)) for row in rows]
    return pa.table(columns)


def samples_table(batches: Iterable[RawBatch]) -> pa.Table | None:
    """All samples of some batches: run_id, channel, t_ns, value."""
    runs: list[str] = []
    lengths: list[int] = []
    channels: list[int] = []
    times: list[np.ndarray[Any, Any]] = []
    values: list[np.ndarray[Any, Any]] = []
    for batch in batches:
        for part in batch.samples:
            if len(part.t_ns) != len(part.value):
                raise ValueError(
                    f"channel {part.channel}: {len(part.t_ns)} times, {len(part.value)} values"
                )
            runs.append(batch.run_id)
            channels.append(part.channel)
            lengths.append(len(part.t_ns))
            times.append(part.t_ns)
            values.append(part.value)
    if not sum(lengths):
        return None
    names, index = np.unique(np.asarray(runs, dtype=object), return_inverse=True)
    run_ids = pa.DictionaryArray.from_arrays(
        np.repeat(index.astype(np.int32), lengths), pa.array(names.tolist(), pa.string())
    )
    return pa.table(
        {
            "run_id": run_ids,
            "channel": np.repeat(np.asarray(channels, np.uint32), lengths),
            "t_ns": np.concatenate(times).astype(np.int64, copy=False),
            "value": np.concatenate(values).astype(np.float64, copy=False),
        }
    )


def blocks_table(blocks: Sequence[tuple[str, Block]]) -> pa.Table:
    """(run_id, block) pairs as a table; the iterations become one list per block."""
    lengths = [len(block.per_iteration_us) for _, block in blocks]
    flat = np.concatenate([block.per_iteration_us for _, block in blocks])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.table(
        {
            "run_id": [run_id for run_id, _ in blocks],
            "block_index": [block.block_index for _, block in blocks],
            "inferences": [block.inferences for _, block in blocks],
            "t_first_ns": [block.t_first_ns for _, block in blocks],
            "t_last_ns": [block.t_last_ns for _, block in blocks],
            "window_method": [block.window_method for _, block in blocks],
            "throttled": [block.throttled for _, block in blocks],
            "per_iteration_us": pa.ListArray.from_arrays(
                pa.array(offsets), pa.array(flat.astype(np.float32, copy=False))
            ),
        }
    )


def _plain(value: object) -> object:
    return value.value if isinstance(value, Enum) else value
