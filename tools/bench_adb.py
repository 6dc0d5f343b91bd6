"""How fast files reach an emulated device: the adb binary alone, and what deploy adds to it.

    python tools/bench_adb.py [--mb 100] [--rounds 9]

Prints the speed of `adb push` and of qhost's push, taken in turns so that both meet the same load,
of the same bytes as a layer (push, sha256 on the device, unpack, move), and of a second deploy,
which pushes nothing; and how large an agent-only change is. On an emulated device this measures
this machine and the emulator, never a phone or a cable.
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
from host.layers import Layer, agent_layer


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


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def in_turns(
    one: Callable[[], object], two: Callable[[], object], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of both, `rounds` times, the first of each pair changing."""
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds):
        pair = (0, 1) if i % 2 else (1, 0)
        for which in pair:
            times[which].append(seconds((one, two)[which]))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=float, default=100.0)
    parser.add_argument("--rounds", type=int, default=9)
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

            alone()  # the page cache is warm for both
            adb_s, push_s = in_turns(
                alone, lambda: device.push(payload.archive, remote), options.rounds
            )
            layer_s = [seconds(install_anew) for _ in range(3)]
            again_s = [seconds(lambda: install.install(device, [payload])) for _ in range(3)]
            agent = agent_layer(Path(folder)).archive.stat().st_size
        finally:
            server.kill()
    for name, times in (("adb push", adb_s), ("push", push_s), ("layer", layer_s)):
        middle = statistics.median(times)
        print(
            f"{name:10} {size / middle / 1e6:7.1f} MB/s  {middle:6.2f} s  (best {min(times):.2f})"
        )
    print(f"{'again':10} nothing pushed  {statistics.median(again_s):6.2f} s")
    pairs = statistics.median(b / a for a, b in zip(adb_s, push_s, strict=True))
    print(
        f"push against adb alone: {pairs:.3f} x its time (median of {options.rounds} pairs), "
        f"best against best {min(push_s) / min(adb_s):.3f} x"
    )
    print(f"an agent-only change pushes {agent:,} bytes")


if __name__ == "__main__":
    main()
