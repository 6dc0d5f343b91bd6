"""External power meters as plug-ins: what one must offer, and how it is found by name.

A plug-in is a function in the entry-point group `qhost.meters` that takes the options of
`--meter NAME:key=value,...` and returns a `Meter`. Its readings are on the host's monotonic clock;
the bench moves them to the device's by the estimated line between the two (`host.clock`), so that
they can be cut at the marks that the agent sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol

from host.errors import UserError, unknown_name
from host.stats.power import METER
from host.store.rows import Floats, Ints

GROUP = "qhost.meters"
# A channel of this site is the whole device at its supply, outside of it.
SITE = METER


@dataclass(frozen=True)
class MeterChannel:
    """`kind` and `unit` as in agent.proto: power in mW, current in mA, voltage in mV."""

    name: str
    kind: str
    unit: str


@dataclass(frozen=True)
class Readings:
    """What a meter measured: (n,) times on the host's monotonic clock, ascending, and the values
    of each channel by name, (n,)."""

    host_ns: Ints
    values: Mapping[str, Floats]


class Meter(Protocol):
    """An instrument that is running. One thread reads it."""

    name: str  # what stands in a run's power method: maker, model, serial
    channels: tuple[MeterChannel, ...]
    rate_hz: float
    stand_in: bool  # software in place of an instrument: never beside measured figures

    def read(self) -> Readings:
        """What has come since the last call; waits at most 0.2 s for it.

        Raises OSError when the instrument is lost.
        """
        ...

    def close(self) -> None: ...


Factory = Callable[[Mapping[str, str]], Meter]


def open_meter(text: str) -> Meter:
    """The meter of `NAME[:key=value,...]`. UserError: unknown, wrong options, not reachable."""
    name, _, rest = text.partition(":")
    options = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(
                f"{part!r} is no option of a meter.", "Write --meter NAME:key=value,key=value."
            )
        options[key.strip()] = value.strip()
    known = {point.name: point for point in entry_points(group=GROUP)}
    if name not in known:
        raise unknown_name("meter", name, known)
    factory: Factory = known[name].load()
    try:
        return factory(options)
    except OSError as error:
        raise UserError(
            f"The meter {name} does not answer: {error.strerror or error}.",
            "Is it on, and are its options right?",
        ) from error
