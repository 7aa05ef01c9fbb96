"""What may happen to a job."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from dispatcher.progress.effects import Cells
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
    """Time has passed. Batches last asked about at or before ``asked_before`` are inspected: a round begins with a
    fence (``token``), and results is asked ``ask_after`` later."""

    asked_before: datetime
    token: str = ""
    ask_after: timedelta = timedelta(seconds=3)
    abandoned: frozenset[str] = frozenset()
    """Lanes whose open batch nobody publishes any more, because its lease was not renewed."""


@dataclass(frozen=True, slots=True)
class Renew:
    """The dispatcher that publishes a batch is still at it, and asks for more time."""

    lane: str
    index: int
    lease: datetime


@dataclass(frozen=True, slots=True)
class Published:
    """Every execution of these batches was published: (lane, index, lease) of each."""

    batches: tuple[tuple[str, int, datetime], ...]


@dataclass(frozen=True, slots=True)
class Inspected:
    """What results found about a batch in the round of one fence."""

    lane: str
    index: int
    token: str
    missing: Cells
    """Executions that are neither recorded nor anywhere else."""
    undecided: int
    """Executions that may be somewhere."""


@dataclass(frozen=True, slots=True)
class AbortAnnounced:
    """The executors were told that no work of the job may start or go on."""


Event = Start | BatchCompleted | Cancel | GiveUp | Tick | Renew | Published | Inspected | AbortAnnounced
"""Anything that may happen to a job."""
