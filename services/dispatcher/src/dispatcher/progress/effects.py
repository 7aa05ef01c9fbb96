"""What is to be published after a step was committed.

All but ``OpenBatch`` and ``ReopenBatch`` may be repeated at will. Those two are carried out by the one dispatcher that
holds the lease, and each of their executions is published at most once.
"""

from dataclasses import dataclass
from datetime import datetime

from dispatcher.progress.state import Closing, Outcome, Tally

Cells = tuple[tuple[str, str, int], ...]
"""(model, region, sample) of executions of a batch."""


@dataclass(frozen=True, slots=True)
class AnnounceStart:
    """The job left the waiting line."""

    started_at: datetime


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """Publish the executions of a batch."""

    lane: str
    index: int
    opened_at: datetime
    deadline: datetime
    lease: datetime


@dataclass(frozen=True, slots=True)
class ReopenBatch:
    """Publish those executions of a batch that are nowhere."""

    lane: str
    index: int
    opened_at: datetime
    deadline: datetime
    lease: datetime
    missing: Cells


@dataclass(frozen=True, slots=True)
class ConfirmBatch:
    """Announce the opening of a batch whose executions turned out to be published."""

    lane: str
    index: int
    opened_at: datetime
    deadline: datetime


@dataclass(frozen=True, slots=True)
class CloseBatch:
    """Have every unfinished execution of a batch written off."""

    lane: str
    index: int
    closing: Closing


@dataclass(frozen=True, slots=True)
class FenceBatch:
    """Publish the token of a round, where the queues of a region are empty."""

    lane: str
    index: int
    token: str


@dataclass(frozen=True, slots=True)
class InspectBatch:
    """Ask how far a batch is, in the round of a token."""

    lane: str
    index: int
    token: str


@dataclass(frozen=True, slots=True)
class ReportBatch:
    """A batch is complete: worth a line in the log."""

    lane: str
    index: int
    tally: Tally
    opened_at: datetime
    closing: Closing | None


@dataclass(frozen=True, slots=True)
class AnnounceAbort:
    """No work of the job may start or go on."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The job has ended."""

    outcome: Outcome
    code: str
    message: str
    tally: Tally
    not_started: int


Effect = (
    AnnounceStart
    | OpenBatch
    | ReopenBatch
    | ConfirmBatch
    | CloseBatch
    | FenceBatch
    | InspectBatch
    | ReportBatch
    | AnnounceAbort
    | Finish
)
"""Anything that follows a step."""
