"""The /sys and /proc files of the emulated device, which the real sensors read.

Every value is written with one pwrite of fixed width into a descriptor that stays open, so that
a reader never sees a torn or empty file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from agent.emulator import constants as c
from agent.emulator.device import Device

_WIDTH = 12


class SysfsTree:
    """Creates the tree under `root` and keeps it in step with the device by `publish`."""

    def __init__(self, root: Path, device: Device) -> None:
        self.root = root
        self._device = device
        self._fds: list[int] = []
        self._live: list[tuple[int, Callable[[], int | bytes]]] = []
        self._written: list[int | bytes | None] = []
        self._suspend_fd = -1
        self._soc()
        self._rails()
        self._battery()
        self._thermal()
        self._clocks()
        self._memory()
        self.publish()
        for pattern in device.personality.denied:
            for node in root.glob(pattern):
                node.chmod(0)

    def publish(self) -> None:
        """Write what has changed since the last call."""
        written = self._written
        if self._suspend_fd >= 0:
            self._device.input_suspended = os.pread(self._suspend_fd, 1, 0) == b"1"
        for i, (fd, value) in enumerate(self._live):
            new = value()
            if new != written[i]:
                written[i] = new
                text = b"%d" % new if isinstance(new, int) else new
                os.pwrite(fd, text.ljust(_WIDTH) + b"\n", 0)
        if self._device.memory_used != self._memory_shown:
            self._write_memory()

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self._live.clear()

    def _static(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def _open(self, path: str) -> int:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            fd = os.open(file, flags, 0o644)
        except PermissionError:  # a node that an earlier tree here was made to deny
            file.unlink()
            fd = os.open(file, flags, 0o644)
        self._fds.append(fd)
        return fd

    def _value(self, path: str, value: Callable[[], int | bytes]) -> None:
        self._live.append((self._open(path), value))
        self._written.append(None)

    def _soc(self) -> None:
        spec = self._device.spec
        self._static("sys/devices/soc0/soc_id", str(spec.soc_ids[0]))
        self._static("sys/devices/soc0/machine", self._device.soc.upper())
        self._static("sys/devices/soc0/family", "Snapdragon")

    def _rails(self) -> None:
        device = self._device
        if not device.personality.rails:
            return
        for i, name in enumerate((*c.RAILS, c.BOARD_RAIL)):
            base = f"sys/class/hwmon/hwmon{i}"
            self._static(f"{base}/name", "ina231")
            self._static(f"{base}/power1_label", name)
            self._value(f"{base}/power1_input", partial(_rail_uw, device, i))

    def _battery(self) -> None:
        device, base = self._device, "sys/class/power_supply/battery"
        quirks = device.personality
        unit = 1e3 if quirks.microamperes else 1.0
        scale = -unit if quirks.negative_out else unit

        def current() -> int | bytes:
            if quirks.busy_every and device.gauge_updates % quirks.busy_every == 1:
                return b""  # what a file can show of a read that fails
            return round(device.battery_ma * scale)

        self._value(f"{base}/status", lambda: b"Charging" if device.charging else b"Discharging")
        self._value(f"{base}/current_now", current)
        self._value(f"{base}/voltage_now", lambda: round(device.battery_mv * 1e3))
        self._value(f"{base}/capacity", lambda: int(device.charge_mah / c.BATTERY_MAH * 100))
        if quirks.power_now:
            self._static(f"{base}/power_now", "68000000")
        if quirks.plugged:
            self._suspend_fd = self._open(f"{base}/input_suspend")
            os.pwrite(self._suspend_fd, b"0\n", 0)

    def _thermal(self) -> None:
        device = self._device
        zones: list[tuple[str, Callable[[], int]]] = [
            (zone, partial(_millidegrees, device, "npu")) for zone in device.spec.npu_zones
        ]
        for zone, node in (
            ("cpuss-0", "cpu"), ("gpuss-0", "gpu"), ("ddr", "ddr"), ("aoss-0", "soc"),
            (device.spec.skin_zone, "skin"), ("xo-therm", "board"),
        ):  # fmt: skip
            zones.append((zone, partial(_millidegrees, device, node)))
        unit = 1e3 if device.personality.battery_zone_milli else 1.0
        zones.append(("battery", lambda: round(device.temperature("battery") * unit)))
        self._static("sys/class/thermal/cooling_device0/type", "cdsp_sw")
        self._value("sys/class/thermal/cooling_device0/cur_state", lambda: device.level)
        # Zones that are not temperatures, as every Snapdragon phone has them.
        zones.append(("pm8550b-ibat-lvl0", lambda: round(device.battery_ma)))
        zones.append(("pm8550b-vbat-lvl0", lambda: round(device.battery_mv)))
        zones.append(("modem-ss-0", lambda: -273_000))
        for i, (zone, value) in enumerate(zones):
            self._static(f"sys/class/thermal/thermal_zone{i}/type", zone)
            self._value(f"sys/class/thermal/thermal_zone{i}/temp", value)

    def _clocks(self) -> None:
        device = self._device
        for policy in (0, 2, 7):
            base = f"sys/devices/system/cpu/cpufreq/policy{policy}"
            self._static(f"{base}/scaling_governor", "walt")
            self._value(
                f"{base}/scaling_cur_freq",
                lambda: c.CPU_BUSY_KHZ if device.load.cpu_busy else c.CPU_IDLE_KHZ,
            )

        if device.personality.npu_clock:
            full_hz = c.NPU_CLOCK_HZ
            self._value(
                "sys/class/devfreq/soc:cdsp/cur_freq", lambda: round(full_hz * device.clock_ratio)
            )

    def _memory(self) -> None:
        self._meminfo = self._open("proc/meminfo")
        self._smaps = self._open(f"proc/{c.MODEL_PID}/smaps_rollup")
        self._write_memory()

    def _write_memory(self) -> None:
        used = self._memory_shown = self._device.memory_used
        total, free = c.MEMORY_TOTAL_BYTES // 1024, (c.MEMORY_AVAILABLE_BYTES - used) // 1024
        os.pwrite(
            self._meminfo,
            b"MemTotal:       %12d kB\nMemFree:        %12d kB\nMemAvailable:   %12d kB\n"
            % (total, free // 2, free),
            0,
        )
        os.pwrite(
            self._smaps,
            b"5500000000-7fffffffff ---p 00000000 00:00 0 [rollup]\n"
            b"Rss:            %12d kB\nPss:            %12d kB\n" % (used // 1024, used // 1024),
            0,
        )


def _rail_uw(device: Device, rail: int) -> int:
    return round(device.rail_readings[rail] * 1e3)


def _millidegrees(device: Device, node: str) -> int:
    return round(device.temperature(node) * 1e3)
