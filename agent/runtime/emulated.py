"""The emulated device's runtime: numerics from the HTP emulator, time from the device model.

Each distinct input of a context is executed once, through the strict QNN session, and its outputs
are kept on disk by the sha256 of context and input. Timed iterations replay the latency of the
manifest's `device_model` block and advance the device's clock.

Of the block, `latency_us.total` is required. Missing `activity` figures count as zero; without
`load_s` or `memory_bytes` the constants module's estimate from the context's size is taken;
without the parts of `latency_us` all of the total follows the clock.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from agent.emulator import constants as c
from agent.emulator.device import (
    IDLE,
    LOADING,
    Device,
    Load,
    block_latencies,
    inference_load,
)
from agent.errors import BadArtifact, BadRequest, DeviceFailure
from agent.runtime import (
    MAX_ITERATIONS,
    Array,
    Block,
    BlockLimits,
    Context,
    Feed,
    Loaded,
    RawProfile,
    Stop,
)
from agent.runtime.ort_qnn import OrtQnnRuntime

# Parts of latency_us that wait for memory, not for the NPU's clock.
_MEMORY_PARTS = ("weights_ddr", "io")


class EmulatedRuntime:
    """Runtime protocol over a Device. `numerics` runs the context for its outputs."""

    name = "emulated"
    batch = 1

    def __init__(self, device: Device, numerics: OrtQnnRuntime, cache: Path, seed: int) -> None:
        self._device = device
        self._numerics = numerics
        self._cache = cache
        self._seed = seed
        self._context: Context | None = None
        self._in_emulator: Context | None = None
        self._blocks = 0

    def load(self, context: Context) -> Loaded:
        model = _model(context)
        warm = self._context is not None
        size = context.binary.stat().st_size
        cold_s = c.LOAD_COLD_S + size / c.LOAD_BYTES_PER_S
        estimate = {"cold": cold_s, "warm": cold_s * c.LOAD_WARM_SHARE}
        seconds = float(model.get("load_s", estimate)["warm" if warm else "cold"])
        seconds *= float(np.exp(self._rng().normal(0.0, c.LATENCY_SIGMA)))
        self._context = context
        memory = int(model.get("memory_bytes", size + c.RUNTIME_MEMORY_BYTES))
        self._device.clock = _profile_clock(context.perf_profile)
        self._device.memory_used = memory
        self._spend(LOADING, seconds)
        return Loaded(seconds, memory)

    def outputs(self, feed: Feed) -> dict[str, Array]:
        context = self._loaded()
        path = self._cache / context.binary_sha256[:24] / f"{_feed_sha256(feed)}.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (FileNotFoundError, ValueError, zipfile.BadZipFile):
            pass
        if self._in_emulator is not context:
            self._numerics.close()
            self._numerics.load(context)
            self._in_emulator = context
        outputs = self._numerics.outputs(feed)
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp = path.with_suffix(".tmp")
        with tmp.open("wb") as out:
            np.savez(out, **outputs)  # type: ignore[arg-type]
        tmp.replace(path)
        return outputs

    def outputs_of(self, feeds: Sequence[Feed]) -> list[dict[str, Array]]:
        return [self.outputs(feed) for feed in feeds]

    def first_inference(self, feed: Feed) -> float:
        model = _model(self._loaded())
        total_us = float(model["latency_us"]["total"])
        seconds = total_us * 1e-6 * c.FIRST_INFERENCE_FACTOR + c.FIRST_INFERENCE_S
        self._spend(inference_load(model), seconds)
        return seconds

    def run_block(self, feeds: list[Feed], limits: BlockLimits, stop: Stop) -> Block:
        model = _model(self._loaded())
        device, rng = self._device, self._rng()
        exact_us = float(model["latency_us"]["total"])
        # A synthetic power signal stands for an energy known exactly: no noise, no throttling.
        noisy = device.trace is None
        total_us = exact_us * float(np.exp(rng.normal(0.0, c.BLOCK_SIGMA))) if noisy else exact_us
        clocked = _clocked_share(model["latency_us"])
        first = device.now_ns
        pieces: list[np.ndarray[Any, np.dtype[np.float32]]] = []
        done = 0
        with self._busy(inference_load(model), exact_us * 1e-6):
            while done < MAX_ITERATIONS and not stop():
                elapsed = device.now_ns - first
                if elapsed >= limits.max_ns or (
                    done >= limits.min_inferences and elapsed >= limits.min_ns
                ):
                    break
                ratio = device.clock_ratio if noisy else 1.0
                latency_us = total_us * (clocked / ratio + 1.0 - clocked)
                count = max(1, min(int(c.GOVERNOR_NS / 1e3 / latency_us), MAX_ITERATIONS - done))
                if noisy:
                    latencies = block_latencies(latency_us, count, rng=rng)
                    latencies[0] *= c.FIRST_INFERENCE_FACTOR if done == 0 else 1.0
                else:
                    latencies = np.full(count, exact_us)
                ends = elapsed + np.cumsum(latencies) * 1e3
                enough = (ends >= limits.min_ns) & (
                    np.arange(done + 1, done + count + 1) >= limits.min_inferences
                )
                enough |= ends >= limits.max_ns
                if enough.any():
                    latencies = latencies[: int(enough.argmax()) + 1]
                device.advance(round(float(latencies.sum()) * 1e3))
                pieces.append(latencies.astype(np.float32))
                done += len(latencies)
        return Block(
            inferences=done,
            t_first_ns=first,
            t_last_ns=device.now_ns,
            per_iteration_us=np.concatenate(pieces) if pieces else np.zeros(0, np.float32),
            window_method="per_iteration",
        )

    def profile(self, context: Context, feeds: list[Feed], count: int) -> RawProfile:
        raise DeviceFailure(
            "an emulated device has no per-operator times: the HTP emulator's cycles are those of "
            "this machine"
        )

    def close(self) -> None:
        self._numerics.close()
        self._context = self._in_emulator = None
        self._device.memory_used = 0

    def _loaded(self) -> Context:
        if self._context is None:
            raise DeviceFailure("no context is loaded")
        return self._context

    def _spend(self, load: Load, seconds: float) -> None:
        with self._busy(load, seconds):
            self._device.advance(round(seconds * 1e9))

    @contextmanager
    def _busy(self, load: Load, latency_s: float) -> Iterator[None]:
        """The load while inside, idle after, also when the spool or the host ends it early."""
        device = self._device
        device.load = load
        if device.trace is not None and load.npu_busy:
            device.trace.begin(device.now_ns, latency_s)
        try:
            yield
        finally:
            device.load = IDLE
            if device.trace is not None and load.npu_busy:
                device.trace.end(device.now_ns)

    def _rng(self) -> np.random.Generator:
        """A new seeded stream per use, so that a repeated session repeats its noise."""
        self._blocks += 1
        return np.random.default_rng((self._seed, self._blocks))


def _model(context: Context) -> Mapping[str, Any]:
    model = context.device_model
    try:
        if model is None or not float(model["latency_us"]["total"]) > 0:
            raise BadArtifact("the manifest has no device_model for this SoC: it cannot be timed")
    except (KeyError, TypeError, ValueError) as error:
        raise BadArtifact("device_model.latency_us.total is missing or no number") from error
    return model


def _clocked_share(latency_us: Mapping[str, Any]) -> float:
    """The share of the latency that lengthens when the NPU's clock falls."""
    memory = sum(float(latency_us.get(part, 0.0)) for part in _MEMORY_PARTS)
    return 1.0 - min(memory / float(latency_us["total"]), 1.0)


def _profile_clock(profile: str) -> float:
    try:
        return c.PROFILE_CLOCK[profile]
    except KeyError:
        known = ", ".join(c.PROFILE_CLOCK)
        raise BadRequest(f"unknown perf_profile {profile!r}; known: {known}") from None


def _feed_sha256(feed: Feed) -> str:
    digest = hashlib.sha256()
    for name in sorted(feed):
        array = np.ascontiguousarray(feed[name])
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
