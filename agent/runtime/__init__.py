"""What executes a context: one protocol, one module per runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Feed = Mapping[str, Array]
Stop = Callable[[], bool]

# A block's per-iteration column (float32, 16 MB) must fit one gRPC message: hosts take 32 MiB.
MAX_ITERATIONS = 4_000_000


@dataclass(frozen=True)
class Tensor:
    """An input or output of a context. `dtype`: as QNN stores it (float32, ufixed8, ...)."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Context:
    """A compiled context on this device's disk, with what the emulated device needs to time it."""

    wrapper: Path  # contexts/<soc>/context.onnx
    binary: Path  # contexts/<soc>/context.bin
    binary_sha256: str
    soc_model: int  # QNN's number of the SoC: 57 = SM8650
    perf_profile: str
    device_model: Mapping[str, Any] | None = None
    rpc_control_latency_us: int = 0  # 0: the runtime's own
    rpc_polling_us: int = 0  # 0: the runtime's own
    inputs: tuple[Tensor, ...] = ()  # as the context stores them; () where the manifest is silent
    outputs: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Loaded:
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class BlockLimits:
    """Run until both minima are reached, or the maximum duration. Nanoseconds of device time."""

    min_inferences: int
    min_ns: int
    max_ns: int


@dataclass(frozen=True)
class Block:
    """One uninterrupted run of inferences. `per_iteration_us` is (inferences,) float32, or None
    where the runtime cannot tell; the window is [t_first_ns, t_last_ns] on the device clock."""

    inferences: int
    t_first_ns: int
    t_last_ns: int
    per_iteration_us: NDArray[np.float32] | None
    window_method: str


@dataclass(frozen=True)
class RawProfile:
    """QNN's profile as a file. `kind`: csv, or log where only the SDK's viewer can read it."""

    data: bytes
    kind: str


class Runtime(Protocol):
    """One context at a time. Errors: BadArtifact, DeviceFailure, TimedOut, Killed, Cancelled."""

    name: str
    batch: int  # how many feeds one call of `outputs_of` does best

    def load(self, context: Context) -> Loaded:
        """Cold after `close`; warm when a context is loaded already (it is loaded again)."""
        ...

    def outputs(self, feed: Feed) -> dict[str, Array]:
        """One inference, for its outputs; not timed."""
        ...

    def outputs_of(self, feeds: Sequence[Feed]) -> list[dict[str, Array]]:
        """`outputs` of each."""
        ...

    def first_inference(self, feed: Feed) -> float:
        """Seconds of the first inference after a load; nan where the runtime cannot tell it."""
        ...

    def run_block(self, feeds: list[Feed], limits: BlockLimits, stop: Stop) -> Block:
        """Inferences back to back, cycling through `feeds`. Ends early when `stop()` is true."""
        ...

    def profile(self, context: Context, feeds: list[Feed], count: int) -> RawProfile:
        """QNN's profile of `count` inferences; nothing is loaded afterwards."""
        ...

    def close(self) -> None:
        """Unload; the next load is cold. Harmless when nothing is loaded."""
        ...


class ChildRuntime(Runtime, Protocol):
    """A runtime whose work is done in a process of its own."""

    @property
    def pid(self) -> int | None:
        """Of the process that runs the model now, to read its memory; from any thread."""
        ...

    def kill(self) -> None:
        """End the child now, from any thread; the call under way raises Killed."""
        ...
