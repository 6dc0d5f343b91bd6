"""Exit codes and the errors the CLI turns into one line. Caught once, in host.cli.main."""

from __future__ import annotations

from enum import IntEnum, StrEnum

from quant.errors import ToolchainError, UserError, unknown_name

__all__ = [
    "DeviceError",
    "ExitCode",
    "FailureClass",
    "RunStatus",
    "ToolchainError",
    "UserError",
    "unknown_name",
]


class ExitCode(IntEnum):
    OK = 0
    USER_ERROR = 1
    USAGE = 2
    JOBS_FAILED = 3
    REGRESSION = 4
    DEVICE_ERROR = 5
    INTERNAL = 70
    INTERRUPTED = 130


class RunStatus(StrEnum):
    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"
    INVALID = "invalid"


class FailureClass(StrEnum):
    USER_ERROR = "USER_ERROR"
    DEVICE_ERROR = "DEVICE_ERROR"
    HARNESS_ERROR = "HARNESS_ERROR"
    TIMEOUT = "TIMEOUT"
    KILLED = "KILLED"


class DeviceError(Exception):
    """A device, cable, adb or agent failed. `transient`: trying again may work. Exit 5."""

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        transient: bool = False,
        failure_class: FailureClass = FailureClass.DEVICE_ERROR,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.transient = transient
        self.failure_class = failure_class
