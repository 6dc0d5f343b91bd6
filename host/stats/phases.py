"""The two phases of a sustained run: the burst of a cool device, and what it keeps up.

A sustained run is one stretch of ten minutes from a device that has cooled down: first six blocks
of 5 s, then blocks of 30 s without a pause. The burst is those first 30 s; the sustained figures
are of the last five minutes. Both are fixed beforehand, so that no look at the data decides what
counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from host.store.rows import Block

SUSTAINED = "sustained"  # the profile's name
BURST_BLOCKS, BURST_BLOCK_S = 6, 5.0
BLOCK_S = 30.0
STEADY_BLOCKS = 10
TOTAL_S = 600.0
BLOCKS = BURST_BLOCKS + round((TOTAL_S - BURST_BLOCKS * BURST_BLOCK_S) / BLOCK_S)


def block_seconds(index: int) -> float:
    """How long the block of this index is timed."""
    return BURST_BLOCK_S if index < BURST_BLOCKS else BLOCK_S


def burst(profile: str, blocks: Sequence[Block]) -> tuple[Block, ...]:
    """The blocks of the burst; none where the profile has no phases."""
    if profile != SUSTAINED:
        return ()
    return tuple(b for b in blocks if b.block_index < BURST_BLOCKS)


def steady(profile: str, blocks: Sequence[Block]) -> tuple[Block, ...]:
    """The blocks that the figures of a run are made of."""
    if profile != SUSTAINED:
        return tuple(blocks)
    return tuple(b for b in blocks if b.block_index >= BLOCKS - STEADY_BLOCKS)
