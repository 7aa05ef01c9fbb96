"""Why an execution ends here, and with what: for the runner to act on."""

from dataclasses import dataclass
from datetime import datetime

from executor.endpoints.port import CallTrace, ModelAnswer
from parallax.contracts.outcomes import ErrorInfo, ExecutionStatus, Reason


@dataclass(frozen=True, slots=True)
class JobStopped:
    """The job was cancelled, ran out of time or was stopped early: end with a fact."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class ExecutorStopping:
    """This executor leaves: end without a fact, somebody else goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The execution is over; becomes a fact."""

    status: ExecutionStatus
    ended_at: datetime
    answer: ModelAnswer | None = None
    error: ErrorInfo | None = None
    trace: CallTrace | None = None
    """Of the attempt that gave the outcome."""
    first_byte_s: float | None = None
    total_s: float | None = None


@dataclass(frozen=True, slots=True)
class HandedBack:
    """The task goes back to its queue, with the attempts made so far."""


@dataclass(frozen=True, slots=True)
class Moved:
    """The task goes to the waiting queue of its model, to make room for the region's other models."""

    not_before: datetime | None = None
    """When its next call may start, if it backs off after a failed one."""


Outcome = Ended | HandedBack | Moved
