"""Whether an execution is nowhere, from what executors answered to a fence. Pure.

The dispatcher saw the queues of a region empty and then wrote the fence to a stream that every executor reads. So an
execution of that region was, at that moment, with an executor, or has left one with a fact. Every executor that answers
the fence lists what it has held since before that moment. If all of them answer and nobody lists the execution, and no
fact of it is recorded or on its way, it is nowhere. No clock of another machine is part of this.

Two kinds of executor do not answer: one that is leaving, and one that is lost. The first says nothing for certain, so
its region stays undecided until it has been silent for a while; the same silence is what tells that one is lost. By
then the broker has noticed too, and what it held waits in the queue again or was delivered to somebody who answers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

SILENT: Final = timedelta(seconds=120)
"""An executor not heard of for so long is lost. The broker takes a lost connection back within 45 s, and a fence is
answered for 60 s: what a lost executor held was back in its queue before the fence was written."""


@dataclass(frozen=True, slots=True)
class Witness:
    """An executor, by its last heartbeat."""

    region: str
    received_at: datetime
    steady_since: datetime
    """Since when its heartbeats come without a gap."""
    stopping: bool
    answer: frozenset[UUID] | None
    """The executions that it lists for the fence; ``None`` when it does not answer."""


def decided_regions(witnesses: Iterable[Witness], now: datetime) -> frozenset[str]:
    """The regions in which what nobody lists is nowhere.

    A region without an executor that answers is undecided: a task published there would only wait.
    """
    of_region: dict[str, list[Witness]] = {}
    for witness in witnesses:
        of_region.setdefault(witness.region, []).append(witness)
    return frozenset(region for region, here in of_region.items() if _is_decided(here, now))


def _is_decided(here: Sequence[Witness], now: datetime) -> bool:
    heard = [each for each in here if now - each.received_at < SILENT]
    if not heard or any(each.answer is None for each in heard):
        return False
    lost = any(now - each.received_at >= SILENT and not each.stopping for each in here)
    # Silence tells of a loss only if it is one's own: heartbeats of others came all the while.
    return not lost or any(now - each.steady_since >= SILENT for each in heard)
