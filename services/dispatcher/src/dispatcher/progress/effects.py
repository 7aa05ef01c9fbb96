"""What the world has to be told after a step. Carrying an effect out twice does no harm."""

from dataclasses import dataclass
from datetime import datetime

from dispatcher.progress.state import Closing, Outcome, Tally


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


@dataclass(frozen=True, slots=True)
class CloseBatch:
    """Have every unfinished execution of a batch written off."""

    lane: str
    index: int
    closing: Closing


@dataclass(frozen=True, slots=True)
class InspectBatch:
    """Ask how far a batch is."""

    lane: str
    index: int


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


Effect = AnnounceStart | OpenBatch | CloseBatch | InspectBatch | ReportBatch | AnnounceAbort | Finish
"""Anything the world has to be told."""
