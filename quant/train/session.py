"""Where a training keeps its checkpoints, and who hears of its progress."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

LOG = logging.getLogger("qhost.train")

# done steps, all steps, loss of the last step
Progress = Callable[[int, int, float], None]


def _log(step: int, steps: int, loss: float) -> None:
    LOG.info("step %d of %d, loss %.5f", step, steps, loss)


def told(say: Callable[[str], None], every_s: float = 2.0) -> Progress:
    """Progress as text, at most once in `every_s` seconds: steps, loss, seconds to go."""
    began: list[float] = []
    last = 0.0

    def progress(step: int, steps: int, loss: float) -> None:
        nonlocal last
        now = time.monotonic()
        if not began or step == 1:  # another training of the same run begins anew
            began[:] = [now, float(step)]
        if now - last < every_s and step < steps:
            return
        last = now
        done = step - began[1]
        left = f", {(now - began[0]) / done * (steps - step):.0f} s left" if done else ""
        say(f"training step {step} of {steps}, loss {loss:.4g}{left}")

    return progress


def default_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "qhost" / "training"


@dataclass(frozen=True)
class Session:
    """folder: of checkpoints, None for none. every_s: seconds between two of them."""

    folder: Path | None
    progress: Progress = _log
    every_s: float = 20.0


_CURRENT: contextvars.ContextVar[Session | None] = contextvars.ContextVar("training", default=None)


def current() -> Session:
    return _CURRENT.get() or Session(default_folder())


@contextlib.contextmanager
def use(session: Session) -> Iterator[None]:
    """Trainings inside the block use this session."""
    token = _CURRENT.set(session)
    try:
        yield
    finally:
        _CURRENT.reset(token)
