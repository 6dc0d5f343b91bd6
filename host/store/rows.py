"""The rows of the database as typed values. Times in ns are on the device's monotonic clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from host.errors import FailureClass, RunStatus

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

UNFINISHED = "The run was interrupted before it finished."


def utc_now() -> datetime:
    """The present as the database stores it: UTC, without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


@dataclass(frozen=True)
class SessionRow:
    """One bench call. `fingerprint`: of all that --resume must find unchanged."""

    session_id: str
    fingerprint: str
    emulated: bool
    profile: str
    seed: int
    command: str = ""
    host_version: str = ""
    host_json: str = "{}"
    created_at: datetime = field(default_factory=utc_now)
    finished_at: datetime | None = None


@dataclass(frozen=True)
class DeviceRow:
    session_id: str
    device_serial: str
    device: str
    soc: str
    emulated: bool
    description_json: str = "{}"


@dataclass(frozen=True)
class RunRow:
    """One model x variant x device of a session.

    A new run is `failed`/KILLED until `Store.finish_run` says otherwise, so a host that dies
    leaves the truth behind.
    """

    run_id: str
    session_id: str
    model_name: str
    model_type: str
    model_fingerprint: str
    task_fingerprint: str
    soc: str
    device: str
    device_serial: str
    method: str
    variant: str
    profile: str
    perf_profile: str = "burst"
    seed: int = 0
    options_json: str = "{}"
    accuracy_metric: str | None = None
    accuracy_higher_is_better: bool | None = None
    artifact_sha256: str | None = None
    status: RunStatus = RunStatus.FAILED
    failure_class: FailureClass | None = FailureClass.KILLED
    message: str = UNFINISHED
    power_method: str | None = None
    power_update_hz: float | None = None
    notes_json: str = "[]"
    fingerprint_json: str = "{}"
    created_at: datetime = field(default_factory=utc_now)
    finished_at: datetime | None = None


@dataclass(frozen=True)
class Channel:
    """One sensor channel, as the agent describes it. `kind` in lower case: power, current, ..."""

    channel: int
    name: str
    site: str
    kind: str
    unit: str
    method: str = ""
    nominal_rate_hz: float = 0.0
    source: str = ""


@dataclass(frozen=True)
class Samples:
    """Samples of one channel: two arrays of equal length, times ascending."""

    channel: int
    t_ns: Ints
    value: Floats


@dataclass(frozen=True)
class Mark:
    """A phase on the device clock. `phase` in lower case: idle_before, timed, idle_after, ..."""

    phase: str
    t_start_ns: int
    t_end_ns: int
    block_index: int = 0


@dataclass(frozen=True)
class Block:
    """One timed block; `per_iteration_us` (inferences,) or empty where the runtime cannot tell."""

    block_index: int
    inferences: int
    t_first_ns: int
    t_last_ns: int
    per_iteration_us: NDArray[np.float32]
    window_method: str = "per_iteration"
    throttled: bool = False

    @property
    def duration_ns(self) -> int:
        return self.t_last_ns - self.t_first_ns


@dataclass(frozen=True)
class Load:
    cold_s: float
    warm_s: float
    first_inference_s: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Memory:
    """Of the process that runs the model, from a pass of its own. `steady_bytes`: median while
    inferring; 0 readings: only the peak of its load is known."""

    peak_bytes: int
    steady_bytes: int
    dma_buffer_bytes: int
    readings: int


@dataclass(frozen=True)
class OpProfile:
    """Cycles (inferences,) of one operator, from a pass of its own."""

    op_id: int
    name: str
    cycles: tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """`execute_us` (inferences,): the whole graph. `file`: the runtime's own, for Fetch."""

    execute_us: tuple[int, ...]
    file: str


@dataclass(frozen=True)
class Golden:
    samples: int
    bit_equal: bool
    sqnr_db: float


@dataclass(frozen=True)
class Cooldown:
    """What the cooldown gate before a block did; `timed_out` makes the run invalid."""

    block_index: int
    waited_ns: int
    timed_out: bool
    message: str


@dataclass(frozen=True)
class ChannelReport:
    """How one channel was read during one segment."""

    channel: int
    reads: int
    failures: int
    updates: int
    update_rate_hz: float
    slowest_read_ns: int


@dataclass(frozen=True)
class SamplerReport:
    """How well the sampler kept its time during one segment, and what it cost."""

    ticks: int
    late_ticks: int
    worst_late_ns: int
    cpu_s: float
    duration_s: float


@dataclass(frozen=True)
class Stage:
    """Seconds the host spent on one stage of one run; `cached`: the result was already there."""

    stage: str
    seconds: float
    cached: bool = False


@dataclass(frozen=True)
class ClockOffset:
    """One round trip: the device's clock was read while the host's was at `host_ns`, give or
    take half of `round_trip_ns`."""

    session_id: str
    device_serial: str
    host_ns: int
    device_ns: int
    round_trip_ns: int
    epoch: int = 0


@dataclass(frozen=True)
class ClockEstimate:
    """The line through the round trips of one epoch: see `host.clock.ClockLine`."""

    session_id: str
    device_serial: str
    epoch: int
    host_ns: int
    device_ns: int
    drift_ppm: float | None
    uncertainty_ns: int
    observations: int


@dataclass(frozen=True)
class RawBatch:
    """What one message of the agent's stream brings for one run."""

    seq: int
    run_id: str
    samples: tuple[Samples, ...] = ()
    marks: tuple[Mark, ...] = ()
    block: Block | None = None
    load: Load | None = None
    golden: Golden | None = None
    cooldown: Cooldown | None = None
    sampler: SamplerReport | None = None
    channel_reports: tuple[ChannelReport, ...] = ()
    memory: Memory | None = None
    profile: Profile | None = None
    ops: tuple[OpProfile, ...] = ()


@dataclass(frozen=True)
class RunData:
    """Everything raw of one run: the input of `host.measure`."""

    run_id: str
    blocks: tuple[Block, ...]
    channels: tuple[Channel, ...] = ()
    samples: Mapping[int, Samples] = field(default_factory=dict)  # by channel
    marks: tuple[Mark, ...] = ()
    load: Load | None = None
    golden: Golden | None = None
    cooldowns: tuple[Cooldown, ...] = ()
    memory: Memory | None = None
    ops: tuple[OpProfile, ...] = ()
    profile: str = ""  # rapid, quick, normal or sustained
