"""The database: raw samples, runs and figures in one DuckDB file with one writer."""

from host.store.database import Store, new_session_id
from host.store.rows import (
    Block,
    Channel,
    ClockOffset,
    DeviceRow,
    Golden,
    Load,
    Mark,
    RawBatch,
    RunData,
    RunRow,
    Samples,
    SessionRow,
    Stage,
    utc_now,
)

__all__ = [
    "Block",
    "Channel",
    "ClockOffset",
    "DeviceRow",
    "Golden",
    "Load",
    "Mark",
    "RawBatch",
    "RunData",
    "RunRow",
    "Samples",
    "SessionRow",
    "Stage",
    "Store",
    "new_session_id",
    "utc_now",
]
