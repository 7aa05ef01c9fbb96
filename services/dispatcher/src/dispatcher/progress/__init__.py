"""How a job moves: a pure state machine. ``step(job, event, now) -> (job, effects)`` is its only entrance.

Architecture invariants: standard library only; no I/O, no clock, no randomness; nothing outside this package
changes a job's progress; the size of the state does not depend on the number of questions, so neither does what
it costs to advance a batch.
"""

from dispatcher.progress.effects import (
    AnnounceAbort,
    AnnounceStart,
    CloseBatch,
    Effect,
    Finish,
    InspectBatch,
    OpenBatch,
    ReportBatch,
)
from dispatcher.progress.events import BatchCompleted, Cancel, Event, GiveUp, Start, Tick, Upcoming
from dispatcher.progress.machine import ImpossibleEventError, step
from dispatcher.progress.state import Batch, Closing, Cut, Ending, Job, Lane, Outcome, Phase, Rules, StopRule, Tally

__all__ = [
    "AnnounceAbort",
    "AnnounceStart",
    "Batch",
    "BatchCompleted",
    "Cancel",
    "CloseBatch",
    "Closing",
    "Cut",
    "Effect",
    "Ending",
    "Event",
    "Finish",
    "GiveUp",
    "ImpossibleEventError",
    "InspectBatch",
    "Job",
    "Lane",
    "OpenBatch",
    "Outcome",
    "Phase",
    "ReportBatch",
    "Rules",
    "Start",
    "StopRule",
    "Tally",
    "Tick",
    "Upcoming",
    "step",
]
