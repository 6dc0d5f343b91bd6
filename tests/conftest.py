"""A QAIRT SDK of the recorded shape, made of stand-ins; the agent bundle for the qemu tests."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from host import bundle
from host.adb import AdbServer

BUILD = "2.51.0.260929181845"
HEXAGONS = (68, 69, 73, 75, 79, 81)
# A device tool: refuses to run unless every file and variable is as documented, then lets the
# emulated device's own stand-in do the work, and keeps the sha256 of what that wrote.
DEVICE_TOOL = """#!/system/bin/sh
here=${0%/*}
fail() { echo "ERROR: $1" >&2; exit 1; }
[ "$LD_LIBRARY_PATH" = "$here" ] || fail "LD_LIBRARY_PATH is $LD_LIBRARY_PATH"
[ "$ADSP_LIBRARY_PATH" = "$here;/vendor/dsp/cdsp;/vendor/lib/rfsa/adsp;/dsp" ] \\
  || fail "ADSP_LIBRARY_PATH is $ADSP_LIBRARY_PATH"
for lib in libQnnHtp libQnnSystem libQnnHtpNetRunExtensions libQnnHtpV75Stub libQnnHtpV75Skel; do
  [ -f "$here/$lib.so" ] || fail "14001 $lib.so"
done
echo "${0##*/} $*" >> /data/local/tmp/qnn-calls
[ "${0##*/}" = qnn-net-run ] || exec "/system/bin/${0##*/}" "$@"
/system/bin/qnn-net-run "$@" || exit $?
sha256sum out/Result_*/*.raw >> /data/local/tmp/qnn-outputs
"""
# The host's viewer: turns the log of a stand-in into the CSV of the real one.
VIEWER = """#!{python} -IS
import sys
args = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert list(args) == ["--input_log", "--output"], sys.argv
log = open(args["--input_log"], "rb").read()
if log != b"\\x00binary log":
    print("ERROR: not a profiling log")
    sys.exit(1)
open(args["--output"], "w").write(
    "Msg Timestamp,Message,Time,Unit of Measurement,Timing Source,Event Level,Event Identifier\\n"
    "1,EXECUTE,1500,US,BACKEND,ROOT,QNN (execute) time\\n"
    "1,EXECUTE,900,CYCLES,BACKEND,SUB-EVENT,conv:OpId_2 (cycles)\\n"
    "2,EXECUTE,1400,US,BACKEND,ROOT,QNN (execute) time\\n"
    "2,EXECUTE,880,CYCLES,BACKEND,SUB-EVENT,conv:OpId_2 (cycles)\\n"
)
"""


@pytest.fixture(scope="module")
def adb_server() -> Iterator[AdbServer]:
    """An adb server of the test's own, on a free port: whatever else runs here is left alone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = AdbServer(port)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADB_USB", "0")  # emulated devices alone, and no wait for USB
        server.ensure()
        yield server
        server.kill()


@pytest.fixture(scope="session")
def make_sdk() -> Callable[..., Path]:
    """make_sdk(root, build): an unpacked SDK of that build at `root`."""
    return build_sdk


def build_sdk(root: Path, build: str = BUILD) -> Path:
    def put(path: str, content: str | bytes, mode: int = 0o644) -> None:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        file.chmod(mode)

    library = b"\x7fELF library v" + build.encode() + b"\0"
    put("sdk.yaml", f"name: qairt\nversion: {build}\n")
    for name in ("qnn-net-run", "qnn-throughput-net-run"):
        put(f"bin/aarch64-android/{name}", DEVICE_TOOL, 0o755)
    viewer = VIEWER.replace("{python}", sys.executable)
    put("bin/x86_64-linux-clang/qnn-profile-viewer", viewer, 0o755)
    for name in ("Htp", "HtpPrepare", "Cpu", "Gpu", *(f"HtpV{arch}Stub" for arch in HEXAGONS)):
        put(f"lib/aarch64-android/libQnn{name}.so", library)
    for name in ("System", "HtpNetRunExtensions"):  # these two do not say their build
        put(f"lib/aarch64-android/libQnn{name}.so", b"\x7fELF library")
    for arch in HEXAGONS:
        folder = f"lib/hexagon-v{arch}/unsigned"
        put(f"{folder}/libQnnHtpV{arch}Skel.so", library)
        put(f"{folder}/libQnnHtpV{arch}.so", library)
    return root


@pytest.fixture(scope="session")
def qemu() -> str:
    """What runs aarch64 programs here; without it the test is skipped, saying so."""
    for program in ("qemu-aarch64-static", "apt-get", "dpkg"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (.ci/run installs qemu-user-static)")
    return str(shutil.which("qemu-aarch64-static"))


@pytest.fixture(scope="session")
def bundle_cache(qemu: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the Android bundle, built once for all the workers of a test run."""
    return _build_once("android-aarch64", None, tmp_path_factory)


@pytest.fixture(scope="session")
def board_cache(bundle_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder, with what a v75 board gets beside interpreter, grpc and numpy."""
    return _build_once("linux-aarch64", ("ort", "qnn-v75"), tmp_path_factory)


def _build_once(target: str, only: Sequence[str] | None, factory: pytest.TempPathFactory) -> Path:
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    cache = base / "bundle-cache"
    cache.mkdir(exist_ok=True)
    folder = bundle.default_folder(cache, target)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            made = bundle.TARGETS[target]
            bundle.build(made, folder, cache / "downloads", lambda step: None, only)
    return cache
