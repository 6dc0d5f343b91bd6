"""A power monitor in software: shows the meter `stream` what a file of an emulated device says.

    python -m host.meters.stand_in --node ROOT/vendor/emulated/sys/class/hwmon/hwmon5/power1_input

Says that it is a stand-in, so that nothing it shows can stand beside measured figures. Its crystal
is off by `--ppm`, as a real one's is.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from pathlib import Path

import numpy as np

from host.meters.stream import HEADER

SUPPLY_MV = 3_900.0
NOISE = 0.002  # of each sample, relative: what shows that readings are new ones
_PACKET_S = 0.02


def serve(listener: socket.socket, node: Path, rate_hz: float, ppm: float) -> None:
    """Serve one connection after the other, for ever. `node` holds microwatts."""
    while True:
        connection, _ = listener.accept()
        with connection:
            hello = {"name": "qhost stand-in", "rate_hz": rate_hz, "stand_in": True}
            try:
                connection.sendall(json.dumps(hello).encode() + b"\n")
                _stream(connection, node, rate_hz * (1 + ppm * 1e-6))
            except OSError:
                continue  # whoever read has gone


def _stream(connection: socket.socket, node: Path, rate_hz: float) -> None:
    fd = os.open(node, os.O_RDONLY)
    rng = np.random.default_rng(0)
    try:
        start = time.monotonic()
        done = 0
        power_mw = _read_mw(fd, 0.0)
        while True:
            # Faster than packets go out, so that a step of the node is caught where it happens.
            values: list[float] = []
            until = time.monotonic() + _PACKET_S
            while time.monotonic() < until:
                due = int((time.monotonic() - start) * rate_hz)
                power_mw = _read_mw(fd, power_mw)
                values += [power_mw] * max(0, due - done - len(values))
                time.sleep(0.001)
            if values:
                rows = np.empty((len(values), 2), "<f4")
                noise = rng.normal(1.0, NOISE, len(values))
                rows[:, 0] = np.array(values) * noise / SUPPLY_MV * 1e3
                rows[:, 1] = SUPPLY_MV
                connection.sendall(HEADER.pack(done, len(values)) + rows.tobytes())
                done += len(values)
    finally:
        os.close(fd)


def _read_mw(fd: int, before: float) -> float:
    try:
        return int(os.pread(fd, 64, 0)) * 1e-3
    except ValueError:
        return before


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m host.meters.stand_in", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--node", type=Path, required=True, help="file with microwatts")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--rate", type=float, default=5000.0, help="samples per second")
    parser.add_argument("--ppm", type=float, default=30.0, help="how far its crystal is off")
    options = parser.parse_args(argv)
    with socket.create_server(("127.0.0.1", options.port)) as listener:
        sys.stdout.write(f"port {listener.getsockname()[1]}\n")
        sys.stdout.flush()
        serve(listener, options.node, options.rate, options.ppm)
    return 0


if __name__ == "__main__":
    sys.exit(main())
