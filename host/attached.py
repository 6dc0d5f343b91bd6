"""What is attached: every device that adb sees, what each one is, and the one that is meant."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from host.adb import LIST_TIMEOUT_S, NETWORK_SERIAL, AdbDevice, AdbServer, explain
from host.errors import DeviceError
from quant.htp.soc import SOCS

T = TypeVar("T")

_NOT_FOUND = 127  # what a shell gives for a command that it does not find
_PROPERTIES = ("ro.soc.model", "ro.product.model", "ro.build.id", "ro.qhost.emulated")


def list_devices(server: AdbServer | None = None) -> list[AdbDevice]:
    """Every device adb sees; model, SoC and build of those that answer.

    All are asked at once: one that hangs must not hold up the others.
    """
    server = server or AdbServer()
    server.ensure()
    found = [
        AdbDevice(serial, state, attributes.get("model", ""), server=server)
        for serial, state, attributes in server.states()
    ]
    return at_once(_identified, found)


def at_once(ask: Callable[[AdbDevice], T], devices: Sequence[AdbDevice]) -> list[T]:
    """`ask` of every device, in threads; the answers in the order of the devices."""
    with ThreadPoolExecutor(max_workers=max(1, len(devices))) as pool:
        return list(pool.map(ask, devices))


def _identified(device: AdbDevice) -> AdbDevice:
    if device.ready:
        # It may go between the two questions; then it is listed as what it was.
        with contextlib.suppress(DeviceError):
            return identify(device)
    return device


def identify(device: AdbDevice) -> AdbDevice:
    """The same device with what its properties say. DeviceError when it does not answer."""
    done = device.shell("; ".join(f"getprop {name}" for name in _PROPERTIES), LIST_TIMEOUT_S)
    if done.code == _NOT_FOUND:
        return _identify_board(device)
    if done.code:
        raise explain(device.serial, done.stderr or f"getprop gave {done.code}")
    soc, model, build, emulated = (*done.stdout.splitlines(), "", "", "", "")[:4]
    return replace(
        device,
        model=model.strip() or device.model,
        soc=soc.strip().lower(),
        build=build.strip(),
        emulated=emulated.strip() == "1",
    )


def _identify_board(device: AdbDevice) -> AdbDevice:
    """A Linux board has no properties: its files say what it is."""

    def read(path: str) -> str:
        return device.shell(f"cat {path}", LIST_TIMEOUT_S).stdout.strip("\0 \n")

    soc_id = read("/sys/devices/soc0/soc_id")
    soc = next((s.id for s in SOCS.values() if soc_id in map(str, s.soc_ids)), "")
    name = re.search(r'^PRETTY_NAME="?([^"\n]*)', read("/etc/os-release"), re.MULTILINE)
    return replace(
        device,
        model=read("/proc/device-tree/model") or device.model,
        soc=soc,
        build=name[1] if name else "",
        android=False,
    )


def find_device(wanted: str, server: AdbServer | None = None) -> AdbDevice:
    """The device with serial `wanted`, the first ready one of SoC `wanted`, or ("") the only one.

    DeviceError when there is none, or when the one that fits cannot be used.
    """
    devices = list_devices(server)
    exact = [d for d in devices if d.serial == wanted or (not wanted and len(devices) == 1)]
    if exact:
        exact[0].require_ready()
        return exact[0]
    for device in devices:
        if device.ready and device.soc == wanted:
            return device
    seen = ", ".join(f"{d.serial} ({d.soc or d.state})" for d in devices)
    if devices and not wanted:
        raise DeviceError("Which device?", f"adb sees {seen}; name one with --device.")
    what = f"No device {wanted}" if wanted else "No device"
    raise DeviceError(
        f"{what} is attached.",
        f"{attach_hint(wanted)}; adb sees {seen}." if seen else f"{attach_hint(wanted)}.",
    )


def attach_hint(wanted: str) -> str:
    """How a device that adb does not see becomes one that it sees."""
    if NETWORK_SERIAL.match(wanted):
        return f"Connect it: adb connect {wanted}"
    return "Plug it in and allow USB debugging on it"
