"""The meter `stream`: a power monitor that streams numbered samples over TCP.

It is the example of a plug-in, in the shape of a bench power monitor such as Monsoon's: it feeds
the device at its battery terminals, samples current and voltage at a fixed rate by its own
crystal, and sends them in packets without any time of the host. `host.meters.stand_in` is one in
software. On the wire: a line of JSON (`name`, `rate_hz`, `stand_in`), then packets of a header
`<QH` (number of the first sample, count) and count times `<ff` (mA, mV).
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from host.errors import UserError
from host.meters import MeterChannel, Readings
from host.meters.sample_clock import SampleClock

Array = NDArray[np.float32]
HEADER = struct.Struct("<QH")
SAMPLE_BYTES = 8
_TIMEOUT_S = 5.0
_WAIT_S = 0.2


def open_stream(options: Mapping[str, str]) -> StreamMeter:
    """`--meter stream:host=127.0.0.1,port=7100`. OSError when nothing answers."""
    unknown = set(options) - {"host", "port"}
    port = options.get("port", "")
    if unknown or not port.isdigit():
        raise UserError(
            "The meter stream takes host (127.0.0.1) and port.",
            "For example --meter stream:host=127.0.0.1,port=7100.",
        )
    return StreamMeter(options.get("host", "127.0.0.1"), int(port))


class StreamMeter:
    """Meter protocol over one connection."""

    channels = (MeterChannel("supply_power", "power", "mW"),
                MeterChannel("supply_voltage", "voltage", "mV"))  # fmt: skip

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), timeout=_TIMEOUT_S)
        self._buffer = b""
        self._next: int | None = None  # number of the next sample
        try:
            hello = json.loads(self._line())
            self.name = str(hello["name"])
            self.rate_hz = float(hello["rate_hz"])
            self.stand_in = bool(hello["stand_in"])
        except (ValueError, KeyError) as error:
            self._socket.close()
            raise OSError("what answers there is no meter of this kind") from error
        self._socket.settimeout(_WAIT_S)
        self._clock = SampleClock(self.rate_hz)

    def read(self) -> Readings:
        """The whole packets that have come; a gap in their numbers is a loss."""
        try:
            data = self._socket.recv(1 << 20)
        except TimeoutError:
            data = None
        now_ns = time.monotonic_ns()
        self._buffer += data or b""
        parts = list(self._packets())
        if not parts:
            if data == b"":
                raise OSError("it closed the connection")
            return Readings(np.empty(0, np.int64), {c.name: np.empty(0) for c in self.channels})
        ma, mv = np.concatenate(parts).astype(np.float64).reshape(-1, 2).T
        assert self._next is not None
        self._clock.arrived(self._next - 1, now_ns)
        times = self._clock.times(self._next - len(ma), len(ma))
        return Readings(times, {"supply_power": ma * mv * 1e-3, "supply_voltage": mv})

    def _packets(self) -> Iterator[Array]:
        """Samples (2 n,) of each whole packet in the buffer, which they leave."""
        while len(self._buffer) >= HEADER.size:
            index, count = HEADER.unpack_from(self._buffer)
            end = HEADER.size + count * SAMPLE_BYTES
            if len(self._buffer) < end:
                return
            if self._next is not None and index != self._next:
                raise OSError(f"it lost samples after number {self._next - 1}")
            part = np.frombuffer(self._buffer[HEADER.size : end], "<f4")
            self._buffer = self._buffer[end:]
            self._next = index + count
            yield part

    def close(self) -> None:
        self._socket.close()

    def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            piece = self._socket.recv(4096)
            if not piece:
                raise OSError("the meter closed the connection")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line
