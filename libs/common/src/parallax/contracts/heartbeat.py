"""What an executor reports of itself every few seconds."""

from typing import Annotated, Literal
from uuid import UUID

from parallax.contracts.model import JobId, Name, RegionName, Strict, Timestamp, Version, unknown_as
from parallax.contracts.outcomes import Text


class RunningExecution(Strict):
    """One execution that an executor holds."""

    execution_id: UUID
    job_id: JobId
    question_id: Name
    model_id: Name
    since: Timestamp
    calling: bool = True
    """Whether its call is under way; others wait for their model or for a slot, or were handed back a moment ago."""


class FenceReading(Strict):
    """An executor's answer to an ``InspectionFence``.

    ``executions`` are those of the fence's batches that the executor has held at any moment since three minutes before
    it read the fence, or since its start: those it holds, those it handed back and those whose fact it published.
    """

    token: Text
    executions: tuple[UUID, ...]


class ExecutorHeartbeat(Strict):
    """A sign of life of one executor, every few seconds."""

    kind: Literal["executor_heartbeat"] = "executor_heartbeat"
    version: Version = 1
    executor_id: Name
    region: RegionName
    budget: int
    running: tuple[RunningExecution, ...]
    models: tuple[Name, ...]
    endpoint_state: Annotated[Literal["ready", "throttled", "unavailable"], unknown_as("unavailable")]
    last_error: Text | None = None
    started_at: Timestamp
    sent_at: Timestamp
    stopping: bool = False
    """True in the last heartbeat of an executor that leaves."""
    fences: tuple[FenceReading, ...] = ()
    """Answers to the fences read in the last minute; none while the executor is leaving."""
