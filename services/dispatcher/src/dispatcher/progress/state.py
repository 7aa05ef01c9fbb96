"""What is known about a job's progress: everything that ``step`` needs and nothing that grows with the job."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

LEASE: Final = timedelta(seconds=30)
"""How long the dispatcher that opens a batch may go on publishing it without renewing its lease: three times what
passes between two renewals, so that two may fail."""


class Phase(StrEnum):
    """Where a job is in its life. Each phase is left once and never entered again."""

    QUEUED = "queued"
    """Waits for its turn; nothing was published."""
    RUNNING = "running"
    """Some lane has an open batch."""
    ENDING = "ending"
    """Was stopped; its open batches are being closed and no further one opens."""
    FINISHED = "finished"
    """No batch is open and none will be."""


class Outcome(StrEnum):
    """How a job ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Cut(StrEnum):
    """What becomes of an execution that is cut off."""

    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Tally:
    """Executions by how they ended."""

    completed: int = 0
    failed: int = 0
    timed_out: int = 0
    cancelled: int = 0

    @property
    def total(self) -> int:
        """Executions that have ended."""
        return self.completed + self.failed + self.timed_out + self.cancelled

    def __add__(self, other: "Tally") -> "Tally":
        """Both together."""
        return Tally(
            self.completed + other.completed,
            self.failed + other.failed,
            self.timed_out + other.timed_out,
            self.cancelled + other.cancelled,
        )


@dataclass(frozen=True, slots=True)
class StopRule:
    """Stop a hopeless job: this share of executions did not complete, seen after this many batches."""

    failure_rate: float
    after_batches: int


@dataclass(frozen=True, slots=True)
class Rules:
    """What was fixed when the job was accepted."""

    questions: int
    executions: int
    batch_deadline: timedelta
    job_deadline: timedelta
    """From the start of the job, not from its submission."""
    min_success_rate: float
    stop: StopRule | None = None


@dataclass(frozen=True, slots=True)
class Closing:
    """Why an open batch is being closed, and what becomes of its unfinished executions."""

    cut: Cut
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Fence:
    """One round of inspecting a batch: who lists ``token`` has read it after the queues were seen empty."""

    token: str
    at: datetime
    """When the round began."""


@dataclass(frozen=True, slots=True)
class Batch:
    """An open batch.

    Its executions are published after it is committed. ``opening_until`` is the lease of the dispatcher that publishes
    them, and tells one opening from another; ``None`` says that they are published.
    """

    index: int
    """Of its question."""
    size: int
    opened_at: datetime
    deadline: datetime
    """Never behind the job's."""
    asked_at: datetime
    """When results was last asked about it, or told to close it; its opening at first."""
    closing: Closing | None = None
    opening_until: datetime | None = None
    fence: Fence | None = None

    def due_at(self, inspect_after: timedelta, ask_after: timedelta) -> datetime:
        """The next moment at which a ``Tick`` asks about this batch, or closes it once more."""
        if self.closing is not None:
            return self.asked_at + inspect_after
        if self.fence is not None:
            return min(self.ask_at(ask_after), self.fence.at + inspect_after)
        return self.opening_until or self.asked_at + inspect_after

    def ask_at(self, ask_after: timedelta) -> datetime:
        """When results is asked within a round: soon after the fence, and again whenever twice the time has passed."""
        assert self.fence is not None, "a round has begun"
        return self.fence.at + max(ask_after, 2 * (self.asked_at - self.fence.at))


@dataclass(frozen=True, slots=True)
class Lane:
    """One ordered walk through the questions, at most one batch open at a time."""

    name: str
    batch: Batch | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """The one thing that a cancellation, a job's deadline and an early stop lead to."""

    outcome: Outcome
    closing: Closing
    at: datetime | None = None
    """``None`` when an earlier version wrote it."""
    announced: bool = False
    """Whether the executors are known to have been told."""


@dataclass(frozen=True, slots=True)
class Job:
    """The progress of one job."""

    rules: Rules
    lanes: tuple[Lane, ...]
    phase: Phase = Phase.QUEUED
    started_at: datetime | None = None
    tally: Tally = Tally()
    batches_completed: int = 0
    ending: Ending | None = None

    @classmethod
    def queued(cls, rules: Rules, lanes: tuple[str, ...]) -> "Job":
        """A job that waits for its turn."""
        return cls(rules=rules, lanes=tuple(Lane(name) for name in lanes))

    @property
    def open_lanes(self) -> tuple[tuple[Lane, Batch], ...]:
        """The lanes with an open batch, each with that batch."""
        return tuple((lane, lane.batch) for lane in self.lanes if lane.batch is not None)

    @property
    def deadline(self) -> datetime | None:
        """When the job as a whole is out of time; ``None`` before its start."""
        return None if self.started_at is None else self.started_at + self.rules.job_deadline

    def open_batch(self, lane: str) -> Batch | None:
        """The open batch of a lane."""
        return next((batch for open_lane, batch in self.open_lanes if open_lane.name == lane), None)

    def with_batch(self, lane: str, batch: Batch | None) -> "Job":
        """The same job with another open batch, or none, in one lane."""
        return replace(
            self, lanes=tuple(replace(each, batch=batch) if each.name == lane else each for each in self.lanes)
        )

    def due_at(self, inspect_after: timedelta, ask_after: timedelta) -> datetime | None:
        """The next moment at which a ``Tick`` would do anything; ``None`` when none ever would.

        ``inspect_after`` is how long a batch may be silent before results is asked about it, ``ask_after`` how long a
        fence is given to reach the executors.
        """
        moments = [batch.due_at(inspect_after, ask_after) for _, batch in self.open_lanes]
        moments += [batch.deadline for _, batch in self.open_lanes if batch.closing is None]
        if self.phase is Phase.RUNNING and self.deadline is not None:
            moments.append(self.deadline)
        return min(moments, default=None)
