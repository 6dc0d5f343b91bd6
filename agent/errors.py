"""What can go wrong in the agent, by whose fault it is. The server maps these to gRPC status."""

from __future__ import annotations

from enum import StrEnum


class FailureClass(StrEnum):
    """`SegmentEnd.failure_class`: the host stores these words."""

    USER_ERROR = "USER_ERROR"
    DEVICE_ERROR = "DEVICE_ERROR"
    HARNESS_ERROR = "HARNESS_ERROR"
    TIMEOUT = "TIMEOUT"
    KILLED = "KILLED"


class AgentError(Exception):
    """Base of the agent's own errors; `failure_class` is what a segment reports."""

    failure_class = FailureClass.HARNESS_ERROR


class BadRequest(AgentError):
    """The request makes no sense, whatever the state of the device."""

    failure_class = FailureClass.USER_ERROR


class NotFound(AgentError):
    """An artifact or file that is not here."""

    failure_class = FailureClass.USER_ERROR


class BadArtifact(AgentError):
    """An artifact that is damaged or lacks what the run needs."""

    failure_class = FailureClass.USER_ERROR


class VersionMismatch(AgentError):
    """Host and agent speak different protocol versions."""


class DeviceFailure(AgentError):
    """The runtime or the accelerator failed on input that should have worked."""

    failure_class = FailureClass.DEVICE_ERROR


class TimedOut(AgentError):
    """Something on the device took longer than its limit."""

    failure_class = FailureClass.TIMEOUT


class Killed(AgentError):
    """The process that ran the model, or the agent itself, was killed."""

    failure_class = FailureClass.KILLED


class SpoolFull(AgentError):
    """The spool reached its bound because no host acknowledged it: the run fails, data does not."""


class Cancelled(AgentError):
    """The host asked for the end of this segment."""
