"""A device of its own: user, mount, network, IPC and process namespaces, and its own root.

What runs inside sees the emulated root as `/`, read-only copies of the host's programs and Python
at their usual paths, and nothing else of the host: not its files, processes or sockets. Linux
namespaces(7), pivot_root(2), mount_setattr(2); needs no privilege where unprivileged user
namespaces are allowed.

`enter` is called once per process, then `boot` once per boot of the device.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

SHELL_UID = 2000  # Android's `shell`

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000
_MS_NOSUID = 0x2
_MS_NODEV = 0x4
_MS_NOEXEC = 0x8
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000
_MNT_DETACH = 0x2
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_SYS_MOUNT_SETATTR = 442  # the same number on every architecture
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR_NOSUID = 0x2
_CAPABILITY_VERSION_3 = 0x20080522
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1

_HOST_PROC = Path("/.proc")

_libc = ctypes.CDLL(None, use_errno=True)


class SandboxError(OSError):
    """The kernel does not let us build the sandbox; the message says at which step."""


def host_programs() -> list[Path]:
    """The host's directories that the device offers read-only: its programs and its Python."""
    wanted = [Path(p) for p in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")]
    wanted += [Path(sys.base_prefix), Path(sys.prefix)]
    wanted.append(Path(sys.executable).resolve().parent.parent)
    wanted += [Path(p) for p in sys.path if p.endswith(("/site-packages", "/dist-packages"))]
    kept: list[Path] = []
    # A link is offered as a link, so what it leads to has to be there as well.
    for path in [q for p in wanted for q in (p, p.resolve())]:
        if path.is_dir() and not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return kept


def enter(root: Path, programs: Sequence[Path], data_bytes: int | None = None) -> None:
    """Make `root` this process's `/`, as uid 2000 without any capability over the host.

    `data_bytes` gives /data a bound of its own (a tmpfs). SandboxError where a step is refused;
    the process is then of no more use.
    """
    uid, gid = os.getuid(), os.getgid()
    _check(
        _libc.unshare(
            _CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS
        ),
        "new namespaces",
    )
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{SHELL_UID} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{SHELL_UID} {gid} 1")
    except OSError as error:
        raise SandboxError(error.errno, f"user mapping: {error.strerror}") from error
    _mount("none", Path("/"), None, _MS_REC | _MS_PRIVATE)
    _mount(str(root), root, None, _MS_BIND | _MS_REC)
    if data_bytes is not None:
        _mount("tmpfs", root / "data", "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={data_bytes}")
        (root / "data/local/tmp").mkdir(parents=True)
    for path in programs:
        _offer(path, root)
    _devices(root / "dev")
    (root / "proc").mkdir(exist_ok=True)
    # The kernel mounts a new /proc only for who can see one already; gone after each boot.
    host_proc = root / _HOST_PROC.relative_to("/")
    host_proc.mkdir(exist_ok=True)
    _mount("/proc", host_proc, None, _MS_BIND | _MS_REC)
    _loopback_up()
    os.chdir(root)
    _syscall(_SYS_PIVOT_ROOT, "pivot_root", b".", b".")
    _check(_libc.umount2(b".", _MNT_DETACH), "leave the old root")
    os.chdir("/")


def boot(main: Callable[[], int], overlay: Callable[[], None]) -> int:
    """Run `main` as the first boot of a device does, and give back its exit code.

    It gets a process namespace of its own, so that every process of the device dies with it.
    `overlay` is called once /proc is mounted, to lay the emulated files over it.
    """
    child = os.fork()
    if child == 0:
        _exit_with(lambda: _boot(main, overlay))
    return _wait(child)


def boot_unconfined(main: Callable[[], int]) -> int:
    """`boot` where there is no sandbox: a process of its own and nothing more."""
    child = os.fork()
    if child == 0:
        _die_with_parent()
        _exit_with(main)
    return _wait(child)


def _boot(main: Callable[[], int], overlay: Callable[[], None]) -> int:
    _die_with_parent()
    _check(_libc.unshare(_CLONE_NEWPID | _CLONE_NEWNS), "process namespace")
    init = os.fork()
    if init == 0:
        _exit_with(lambda: _init(main, overlay))
    return _wait(init)


def _init(main: Callable[[], int], overlay: Callable[[], None]) -> int:
    """Process 1 of the device: mounts /proc, starts adbd, reaps what adbd leaves."""
    _die_with_parent()
    _mount("proc", Path("/proc"), "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _check(_libc.umount2(os.fsencode(_HOST_PROC), _MNT_DETACH), "leave the host's /proc")
    overlay()
    adbd = os.fork()
    if adbd == 0:
        _die_with_parent()
        _drop_capabilities()
        _exit_with(main)
    while True:
        pid, status = os.wait()
        if pid == adbd:
            return os.waitstatus_to_exitcode(status) & 0xFF


def bind(source: Path, target: Path) -> None:
    """Show `source` at `target`."""
    _mount(str(source), target, None, _MS_BIND)


def supported() -> str | None:
    """None where the sandbox works; else why not. Tries it in a process of its own."""
    reader, writer = os.pipe()
    with tempfile.TemporaryDirectory() as root:
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                enter(Path(root), host_programs())
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                if boot(lambda: 0, lambda: None):
                    raise SandboxError(errno.EPERM, "the trial boot failed")
            except OSError as error:
                os.write(writer, str(error.strerror or error).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as answer:
            reason = answer.read().decode()
        os.waitpid(child, 0)
    return reason or None


def _exit_with(main: Callable[[], int]) -> NoReturn:
    """Run `main` as the whole of this forked process."""
    code = 1
    try:
        code = main()
    finally:
        if sys.exc_info()[0]:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) & 0xFF


def _check(result: int, step: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise SandboxError(number, f"{step}: {os.strerror(number)}")


def _syscall(numbers: dict[str, int], step: str, *arguments: object) -> None:
    number = numbers.get(os.uname().machine)
    if number is None:
        raise SandboxError(errno.ENOSYS, f"{step}: not known on {os.uname().machine}")
    _check(_libc.syscall(number, *arguments), step)


def _mount(
    source: str, target: Path, kind: str | None, flags: int, options: str | None = None
) -> None:
    def text(value: str | None) -> bytes | None:
        return None if value is None else value.encode()

    result = _libc.mount(
        source.encode(), os.fsencode(target), text(kind), ctypes.c_ulong(flags), text(options)
    )
    _check(result, f"mount at {target}")


def _offer(path: Path, root: Path) -> None:
    """Show the host's `path` read-only at the same place under `root`."""
    target = root / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        if not target.is_symlink():
            target.symlink_to(path.readlink())
        return
    target.mkdir(exist_ok=True)
    _mount(str(path), target, None, _MS_BIND | _MS_REC)
    attributes = struct.pack("<4Q", _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, 0, 0)
    result = _libc.syscall(
        _SYS_MOUNT_SETATTR,
        _AT_FDCWD,
        os.fsencode(target),
        _AT_RECURSIVE,
        attributes,
        ctypes.c_size_t(len(attributes)),
    )
    _check(result, f"read-only {path}")


def _devices(dev: Path) -> None:
    dev.mkdir(exist_ok=True)
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        node = dev / name
        node.touch()
        bind(Path("/dev", name), node)
    (dev / "pts").mkdir(exist_ok=True)
    _mount("devpts", dev / "pts", "devpts", _MS_NOSUID | _MS_NOEXEC, "newinstance,ptmxmode=0666")
    ptmx = dev / "ptmx"
    if not ptmx.is_symlink():
        ptmx.symlink_to("pts/ptmx")
    if not (dev / "fd").is_symlink():
        (dev / "fd").symlink_to("/proc/self/fd")


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def _die_with_parent() -> None:
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "parent death signal")


def _drop_capabilities() -> None:
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    _syscall(_SYS_CAPSET, "drop capabilities", header, bytes(24))
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
