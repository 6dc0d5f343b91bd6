"""How fast files reach an emulated device: the adb binary alone, and what deploy adds to it.

    python tools/bench_adb.py [--mb 100] [--rounds 3]

Prints the speed of `adb push`, of the same bytes as a layer (push, sha256 on the device, unpack,
move), and of a second deploy, which pushes nothing. On an emulated device this measures this
machine and the emulator, never a phone or a cable.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from host import install
from host.adb import AdbDevice, AdbServer, binary
from host.emulate import EmulatedPhone
from host.layers import Layer


def layer(folder: Path, size: int) -> Layer:
    """A layer of `size` bytes that do not compress."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        member = tarfile.TarInfo("payload.bin")
        member.size = size
        archive.addfile(member, io.BytesIO(os.urandom(size)))
    packed = gzip.compress(data.getvalue(), compresslevel=1, mtime=0)
    path = folder / "layer.tar.gz"
    path.write_bytes(packed)
    return Layer("payload", hashlib.sha256(packed).hexdigest(), path)


def median_s(action: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=float, default=100.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=15038, help="of the adb server used here")
    options = parser.parse_args()
    os.environ["ADB_USB"] = "0"  # emulated devices alone, and no wait for USB
    server = AdbServer(options.port)
    with tempfile.TemporaryDirectory() as folder, EmulatedPhone("sm8650") as phone:
        try:
            server.connect(phone.serial)
            device = AdbDevice(phone.serial, "device", emulated=True, server=server)
            device.wait_ready(10)
            payload = layer(Path(folder), int(options.mb * 1e6))
            size = payload.archive.stat().st_size
            remote = PurePosixPath("/data/local/tmp/payload")
            command = [binary(), "-P", str(server.port), "-s", phone.serial, "push"]
            command += [str(payload.archive), str(remote)]

            def alone() -> None:
                subprocess.run(command, check=True, capture_output=True)

            def install_anew() -> None:
                device.check(f"rm -rf {payload.directory}")
                assert install.install(device, [payload]).pushed_bytes == size

            adb_s = median_s(alone, options.rounds)
            push_s = median_s(lambda: device.push(payload.archive, remote), options.rounds)
            layer_s = median_s(install_anew, options.rounds)
            again_s = median_s(lambda: install.install(device, [payload]), options.rounds)
        finally:
            server.kill()
    for name, seconds in (("adb push", adb_s), ("push", push_s), ("layer", layer_s)):
        print(f"{name:10} {size / seconds / 1e6:7.1f} MB/s  {seconds:6.2f} s")
    print(f"{'again':10} nothing pushed  {again_s:6.2f} s")
    print(f"push takes {push_s / adb_s:.2f} x the time of adb alone")


if __name__ == "__main__":
    main()
