"""Size of the agent bundle, what pushing it costs, and how fast an agent starts.

    python tools/bench_bundle.py [--target android-aarch64] [--bundle DIR] [--starts 7]

Prints each layer's size packed and on the device, the sums that a device gets, the times of a first
deployment to an emulated device through the real adb, of a second one and of one with changed
agent code, and the start of the agent on this machine (wall and processor time, to its ready
line). On an emulated device push times are this machine's, never a phone's or a cable's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from host import bundle, install
from host.adb import AdbDevice, AdbServer
from host.emulate import EmulatedPhone
from host.layers import Layer, Member, agent_layer, files_of, pack


def sizes(built: bundle.Bundle, code: Layer) -> None:
    print(f"{built.target}: layer, MB packed, MB on the device")
    for layer in built.layers:
        packed = layer.archive.stat().st_size / 1e6
        print(f"  {layer.name:<8} {packed:7.2f} {built.unpacked_bytes[layer.name] / 1e6:7.1f}")
    packed = code.archive.stat().st_size / 1e6
    print(f"  {code.name:<8} {packed:7.2f}       -   (changes with every version of qhost)")
    common = [layer for layer in built.layers if not layer.name.startswith("qnn-")]
    hexagons = [layer for layer in built.layers if layer.name.startswith("qnn-")]
    one = common + hexagons[:1]
    total = sum(layer.archive.stat().st_size for layer in one) / 1e6 + packed
    unpacked = sum(built.unpacked_bytes[layer.name] for layer in one) / 1e6
    print(f"  a device gets {total:.1f} MB packed, {unpacked:.1f} MB unpacked (one Hexagon)")


def pushes(built: bundle.Bundle, code: Layer, folder: Path, port: int) -> None:
    server = AdbServer(port)
    layers = [layer for layer in built.layers if not layer.name.startswith("qnn-")]
    edited = Member("agent/changed.py", b"# a module more\n")
    with tarfile.open(code.archive) as archive:
        archive.extractall(folder / "code", filter="data")
    changed = pack("agent", [*files_of(folder / "code"), edited], folder)
    with EmulatedPhone("sm8650") as phone:
        server.connect(phone.serial)
        device = AdbDevice(phone.serial, "device", server=server)
        device.wait_ready(10)
        print("deployment to an EMULATED device through adb: s, MB pushed")
        for name, last in (("first", code), ("again", code), ("new agent code", changed)):
            started = time.perf_counter()
            done = install.install(device, [*layers, last])
            seconds = time.perf_counter() - started
            print(f"  {name:<15} {seconds:6.2f} {done.pushed_bytes / 1e6:7.2f}")
        server.kill()


def start_once(folder: Path) -> tuple[float, float]:
    """(wall, processor) seconds from the start of the process to the agent's ready line."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text("t" * 32)
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "agent", "--emulate", "sm8650", "--root", folder / "root",
         "--token-file", token, "--die-with-parent"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stdin is not None
    json.loads(process.stdout.readline())
    wall = time.perf_counter() - started
    ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    process.stdin.close()
    process.wait(20)
    process.stdout.close()
    return wall, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", choices=sorted(bundle.TARGETS), default="android-aarch64")
    parser.add_argument("--bundle", type=Path, help="one that is built; default: build it now")
    parser.add_argument("--starts", type=int, default=7)
    parser.add_argument("--port", type=int, default=15039, help="of the adb server used here")
    options = parser.parse_args()
    os.environ["ADB_USB"] = "0"  # emulated devices alone, and no wait for USB
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        code = agent_layer(folder)
        if options.bundle:
            built = bundle.open_bundle(options.bundle)
        else:
            started, cpu = time.perf_counter(), os.times()
            built = bundle.build(
                bundle.TARGETS[options.target], folder / "bundle", folder / "downloads", print
            )
            now = os.times()
            spent = sum(now[:4]) - sum(cpu[:4])
            print(f"built in {time.perf_counter() - started:.1f} s, {spent:.1f} s of processor")
        sizes(built, code)
        pushes(built, code, folder, options.port)
        runs = [start_once(folder) for _ in range(options.starts)]
        wall, cpu_s = (statistics.median(column) for column in zip(*runs, strict=True))
        slowest = max(run[0] for run in runs)
        print(
            f"agent start on this machine, {options.starts} times: median {wall:.2f} s "
            f"(slowest {slowest:.2f} s), {cpu_s:.2f} s of processor; load {os.getloadavg()[0]:.1f}"
        )


if __name__ == "__main__":
    main()
