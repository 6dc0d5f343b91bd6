"""Who uses a device: a lease that lies on the device itself, so that every host sees it.

A lease is a symlink whose target is its text: creating one is atomic and fails when there is one,
and the adb shell user may do it under /data/local/tmp. Expiry is on the device's clock, so hosts
need not agree on the time. The holder renews it from a thread; when the host dies it runs out.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import secrets
import shlex
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from host.adb import AdbDevice
from host.errors import DeviceError

BASE = PurePosixPath("/data/local/tmp/qhost")
LINK = BASE / "lease"
TERM_S = 60
POLL_S = 1.0


class LeaseTaken(DeviceError):
    """Somebody else holds the device; the message names them."""


@dataclass(frozen=True)
class Lease:
    """What the device says. `expires_s` is on the device's clock, as `now_s` is."""

    owner: str
    nonce: str
    expires_s: int
    now_s: int

    @property
    def expired(self) -> bool:
        return self.now_s >= self.expires_s

    @property
    def text(self) -> str:
        return f"{self.expires_s}:{self.nonce}:{self.owner}"


def this_owner() -> str:
    """user@host, process id: what others are told."""
    with contextlib.suppress(OSError, KeyError):
        return f"{getpass.getuser()}@{socket.gethostname()} pid {os.getpid()}"
    return f"{socket.gethostname()} pid {os.getpid()}"


def read(device: AdbDevice) -> Lease | None:
    """The lease on the device, expired or not; None when there is none."""
    done = device.shell(f"date +%s; readlink {LINK}")
    lines = done.stdout.splitlines()
    if len(lines) < 2:
        return None
    expires, nonce, owner = [*lines[1].split(":", 2), "", ""][:3]
    if not expires.isdecimal() or not lines[0].isdecimal():
        return None
    return Lease(owner, nonce, int(expires), int(lines[0]))


class HeldLease:
    """A lease of ours, renewed until `release`. Use `acquire` to get one."""

    def __init__(self, device: AdbDevice, nonce: str, owner: str) -> None:
        self._device = device
        self._nonce = nonce
        self._owner = owner
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def read(self) -> Lease | None:
        """The lease while the device still says it is ours. DeviceError when it cannot say."""
        found = read(self._device)
        return found if found and found.nonce == self._nonce else None

    def abandon(self) -> None:
        """Renew it no more; it runs out by itself on a device that cannot be reached."""
        self._stop.set()

    def release(self) -> None:
        """Give the device back; without an error when it is gone."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(DeviceError):
            if self.read():
                self._device.shell(f"rm -f {LINK}")

    def _renew(self) -> None:
        while not self._stop.wait(TERM_S / 4):
            # A device that is away for a while keeps our lease; it is renewed when it is back.
            with contextlib.suppress(DeviceError):
                held = self.read()
                if held is None:
                    return
                renewed = f"{held.now_s + TERM_S}:{self._nonce}:{self._owner}"
                spare = f"{LINK}.{self._nonce}"
                # -f: a connection that broke between the two may have left the spare one.
                self._device.check(f"ln -sf {shlex.quote(renewed)} {spare} && mv -f {spare} {LINK}")


def acquire(
    device: AdbDevice, *, wait_s: float = 0.0, owner: str = "", nonce: str = ""
) -> HeldLease:
    """Lease the device, waiting up to `wait_s` for another holder.

    `nonce` names this lease: one that is there under the same name is taken over.
    LeaseTaken names the holder when it does not become free.
    """
    owner = owner or this_owner()
    nonce = nonce or secrets.token_hex(6)
    deadline = time.monotonic() + wait_s
    device.check(f"mkdir -p {BASE}")
    while True:
        now = int(device.check("date +%s"))
        text = f"{now + TERM_S}:{nonce}:{owner}"
        if device.shell(f"ln -s {shlex.quote(text)} {LINK}").code == 0:
            return HeldLease(device, nonce, owner)
        held = read(device)
        if held is None:
            if device.shell(f"ls {BASE}").code:
                raise DeviceError(f"{device.serial} lets nobody write to {BASE}.")
            device.shell(f"rm -f {LINK}")  # not a lease of any version we know
        elif held.nonce == nonce:
            return HeldLease(device, nonce, owner)
        elif held.expired or _died_here(held.owner):
            _remove_expired(device, held)
        elif time.monotonic() >= deadline:
            raise LeaseTaken(
                f"{device.serial} is in use by {held.owner} "
                f"(for at least {held.expires_s - held.now_s} s more).",
                "Wait, choose another device, or end that session.",
                transient=True,
            )
        else:
            time.sleep(POLL_S)


def _died_here(owner: str) -> bool:
    """Whether the holder was a process of this machine that is gone."""
    found = re.search(r"@(.+) pid (\d+)$", owner)
    return bool(
        found
        and found[1] == socket.gethostname()
        and Path("/proc/self").exists()
        and not Path("/proc", found[2]).exists()
    )


def _remove_expired(device: AdbDevice, held: Lease) -> None:
    """Take an expired lease away. Of several hosts that try, the rename lets one through; should
    it have caught a lease newer than the one it read, that one is put back."""
    away = f"{LINK}.{secrets.token_hex(6)}"
    if device.shell(f"mv {LINK} {away}").code:
        return
    caught = device.shell(f"readlink {away}").stdout.strip()
    if caught == held.text:
        device.shell(f"rm -f {away}")
    else:
        device.shell(f"mv {away} {LINK}")
