"""What may happen to a job."""

from dataclasses import dataclass
from datetime import datetime

from dispatcher.progress.state import Tally


@dataclass(frozen=True, slots=True)
class Upcoming:
    """The next batch of a lane that has executions: its question's index and its size.

    Whoever makes the event looks it up, so that the state need not hold the questions; questions without an
    execution in the lane (a retry asks for a part of the matrix) are passed over by that.
    """

    index: int
    size: int


@dataclass(frozen=True, slots=True)
class Start:
    """It is the job's turn. ``first`` names every lane once, with its first batch or ``None`` when it has none."""

    first: tuple[tuple[str, Upcoming | None], ...]


@dataclass(frozen=True, slots=True)
class BatchCompleted:
    """Every execution of a batch has a fact. ``upcoming`` is what follows it in its lane, ``None`` after the last."""

    lane: str
    index: int
    tally: Tally
    upcoming: Upcoming | None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Somebody asks to stop the job."""

    message: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The job's executions cannot be published: a region of it has left the installation."""

    message: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. Batches last asked about at or before ``asked_before`` are asked about again."""

    asked_before: datetime


Event = Start | BatchCompleted | Cancel | GiveUp | Tick
"""Anything that may happen to a job."""
