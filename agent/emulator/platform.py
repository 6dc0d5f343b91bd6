"""The emulated device as a Platform: device, files, sensors and runtime on one clock.

As fast as possible (time_factor None) the device's clock advances by what the model says and
nothing sleeps; it stands still between segments. With a factor, wall time = device time / factor,
also while the device rests between segments.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from agent import fingerprint
from agent.charging import Charger
from agent.emulator import constants as c
from agent.emulator.android_commands import COMMANDS
from agent.emulator.device import Device
from agent.emulator.personalities import PERSONALITIES, Personality
from agent.emulator.phone import Phone
from agent.emulator.signals import Signal
from agent.emulator.sysfs import SysfsTree
from agent.platform import Column, Report, Sink, Watch, log_path
from agent.runtime import Runtime, Stop
from agent.runtime.emulated import EmulatedRuntime
from agent.runtime.ort_qnn import OrtQnnRuntime
from agent.sampler import ChannelStats
from agent.sensors import discover
from agent.sensors.channel import Channel, Spec
from agent.sensors.system import ProcessMemory, process_memory
from protos import agent_pb2 as pb

_IDLE_PIECE_NS = 1_000_000_000
_FLUSH_SAMPLES = 4_000
_REST_REFRESH_S = 0.5
# Behind by more than this, device time waits for the machine instead of racing after the wall.
_LATE_S = 0.25


class EmulatedPlatform:
    """Platform protocol. `seed` makes noise repeatable; `phone`: the Android device below."""

    def __init__(
        self,
        soc: str,
        root: Path,
        *,
        time_factor: float | None = None,
        seed: int = 0,
        phone: Phone | None = None,
        personality: Personality = PERSONALITIES["board"],
        signal: Signal | None = None,
    ) -> None:
        self._root = root
        self._seed = seed
        self._factor = time_factor
        self._device = Device(soc, seed=seed, personality=personality, signal=signal)
        self._phone = phone
        self._tree = SysfsTree(phone.tree if phone else root / "sysroot", self._device)
        found = discover(self._tree.root)
        self._channels, self._denied = found.channels, found.denied
        self._watch = Watch(self._channels)
        self.charger = Charger(self._tree.root, root / "charger.json")
        self._numerics = OrtQnnRuntime(log_path(root, "ort_qnn"))
        self._lock = threading.Lock()  # whoever advances the device holds it
        self._anchor = (time.monotonic(), self._device.now_ns)  # wall s and device ns, at once
        if time_factor is not None:
            self._device.pace = self._pace
            threading.Thread(target=self._rest, daemon=True, name="emulated-rest").start()

    def description(self) -> pb.Description:
        spec = self._device.spec
        serial = hashlib.sha256(f"{self._device.soc} {self._root}".encode()).hexdigest()[:8]
        return pb.Description(
            substrate=pb.EMULATED,
            emulation_basis=c.BASIS,
            device=pb.DeviceIdentity(
                serial=self._phone.serial if self._phone else f"EMU{serial}",
                model=f"{spec.name} (emulated)",
                soc=self._device.soc,
                soc_model=spec.soc_model,
                htp_arch=spec.htp_arch,
                build=self._phone.build if self._phone else c.BUILD,
                os="android" if self._phone else "linux",
            ),
            channels=[ch.spec.to_proto(i) for i, ch in enumerate(self._channels, 1)],
            runtimes=[EmulatedRuntime.name],
            fingerprint={
                **fingerprint.read(self._tree.root, self._android),
                **fingerprint.of_package(),
                "build": c.BUILD,
                "perf_profiles": ",".join(c.PROFILE_CLOCK),
                "personality": self._device.personality.name,
                "denied": ",".join(self._denied),
                "charging": self.charger.status(),
                "wake_lock": "not needed: it never sleeps",
            },
        )

    @property
    def soc(self) -> str:
        return self._device.soc

    @property
    def soc_model(self) -> int:
        return self._device.spec.soc_model

    def now_ns(self) -> int:
        return self._device.now_ns

    def clock_ns(self) -> int:
        """With a factor the clock goes on between two steps of the device."""
        if self._factor is None:
            return self._device.now_ns
        wall_s, base_ns = self._anchor
        return base_ns + round((time.monotonic() - wall_s) * self._factor * 1e9)

    @contextmanager
    def active(self) -> Iterator[None]:
        with self._lock:
            self._catch_up()
            yield
            self._catch_up()  # numerics take wall time, in which the device has rested

    def idle(self, ns: int, stop: Stop) -> None:
        end = self._device.now_ns + ns
        while self._device.now_ns < end and not stop():
            self._device.advance(min(_IDLE_PIECE_NS, end - self._device.now_ns))
            self._tree.publish()

    def temperatures(self) -> list[tuple[Spec, float]]:
        self._tree.publish()
        return self._watch.temperatures()

    def throttling(self) -> bool:
        return self._device.level > 0

    def model_memory(self) -> ProcessMemory | None:
        self._tree.publish()
        return process_memory(self._tree.root, c.MODEL_PID)

    def runtime(self) -> Runtime:
        cache = self._root / "cache" / "outputs"
        return EmulatedRuntime(self._device, self._numerics, cache, self._seed)

    @contextmanager
    def sampling(self, rate_hz: float, sink: Sink, report: Report) -> Iterator[None]:
        device = self._device
        sampler = LockstepSampler(self._channels, self._tree, rate_hz, sink)
        start_ns = device.now_ns
        device.on_tick(round(1e9 / rate_hz), sampler.tick)
        try:
            yield
            sampler.last(device.now_ns)
        finally:
            device.on_tick(0, None)
            sampler.close()
        report(sampler.report((device.now_ns - start_ns) / 1e9))

    def _android(self, argv: Sequence[str]) -> str | None:
        """What Android's services say of this device: the model's power is that of a device whose
        screen and radios are off."""
        command = COMMANDS.get(argv[0])
        if command is None:
            return None
        code, text = command(self._tree.root, list(argv[1:]))
        return text if code == 0 else None

    def kill_children(self) -> None:
        self._numerics.kill()

    def _pace(self, now_ns: int) -> None:
        """Sleep until the wall reaches device time `now_ns`."""
        assert self._factor is not None
        wall_s, base_ns = self._anchor
        ahead_s = (now_ns - base_ns) / 1e9 / self._factor - (time.monotonic() - wall_s)
        if ahead_s > 0.001:
            time.sleep(ahead_s)
        elif ahead_s < -_LATE_S:
            self._rebase()

    def _rebase(self) -> None:
        self._anchor = (time.monotonic(), self._device.now_ns)

    def _catch_up(self) -> None:
        """Let the device rest for the wall time that has passed since it was last advanced."""
        if self._factor is not None:
            # The anchor stays: rebasing here would lose a little of the wall's time each time,
            # and the two clocks would drift apart.
            self._device.pace = None
            self._device.advance(max(0, self.clock_ns() - self._device.now_ns))
            self._device.pace = self._pace

    def _rest(self) -> None:
        """Between segments the device cools and its files stay fresh."""
        while True:
            time.sleep(_REST_REFRESH_S)
            with self._lock:
                self._catch_up()
                self._tree.publish()


class LockstepSampler:
    """Reads the emulated device's files in device time; the real sampler runs on wall time."""

    def __init__(
        self, channels: Sequence[Channel], tree: SysfsTree, rate_hz: float, sink: Sink
    ) -> None:
        self._tree = tree
        self._sink = sink
        self._channels = channels
        # A slow node is read on every n-th tick.
        self._every = [max(1, round(rate_hz / ch.spec.poll_hz)) for ch in channels]
        self._columns = [Column(i, [], []) for i in range(1, len(channels) + 1)]
        self._stats = [ChannelStats(column.channel) for column in self._columns]
        self._ticks = 0
        self._pending = 0
        self._cpu_s = 0.0
        for channel in channels:
            channel.open()

    def tick(self, now_ns: int) -> None:
        self._read(now_ns, everything=False)
        self._ticks += 1
        if self._pending >= _FLUSH_SAMPLES:
            self._flush()

    def last(self, now_ns: int) -> None:
        """Read every channel, so that its samples reach to the end."""
        self._read(now_ns, everything=True)
        self._flush()

    def report(self, seconds: float) -> pb.SamplerReport:
        """Of `seconds` of device time; the processor time is this machine's."""
        return pb.SamplerReport(
            ticks=self._ticks,
            cpu_s=self._cpu_s,
            duration_s=seconds,
            channels=[stats.to_proto() for stats in self._stats],
        )

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    def _read(self, now_ns: int, *, everything: bool) -> None:
        began = time.thread_time()
        self._tree.publish()
        tick = self._ticks
        for channel, every, column, stats in zip(
            self._channels, self._every, self._columns, self._stats, strict=True
        ):
            # A reading at this very time is there already when the last tick was due now.
            if (tick % every and not everything) or column.t_ns[-1:] == [now_ns]:
                continue
            value = channel.read()
            stats.add(now_ns, value, 0)
            if value is not None:
                column.t_ns.append(now_ns)
                column.values.append(value)
                self._pending += 1
        self._cpu_s += time.thread_time() - began

    def _flush(self) -> None:
        full = [column for column in self._columns if column.t_ns]
        if full:
            self._sink(full)
        self._columns = [Column(column.channel, [], []) for column in self._columns]
        self._pending = 0
