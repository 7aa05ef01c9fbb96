"""Which openings nobody works on any more, whatever the clocks of other machines say."""

from collections import OrderedDict
from datetime import datetime
from typing import Final

from dispatcher.jobs import StoredJob
from dispatcher.progress import LEASE
from parallax.clock import Clock

MAX_WATCHED: Final = 10_000
"""Openings watched at once, far more than batches are open; forgetting one delays its inspection."""


class Leases:
    """Watches leases from outside.

    A lease that is out by the wall clock may have been written by a machine whose clock is behind. So it counts as
    abandoned only when it was seen unchanged for its whole length on our own monotonic clock: then its holder, who
    started it before we first saw it and counts on a monotonic clock too, has stopped.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._first_seen: OrderedDict[tuple[str, str, datetime], float] = OrderedDict()

    def abandoned(self, job: StoredJob, now: datetime) -> frozenset[str]:
        """The lanes of a job whose open batch is not published by anybody."""
        due = [
            (lane.name, batch.opening_until)
            for lane, batch in job.progress.open_lanes
            if batch.opening_until is not None and batch.opening_until <= now
        ]
        return frozenset(
            lane for lane, lease in due if self._watched_s(job.job_id, lane, lease) >= LEASE.total_seconds()
        )

    def _watched_s(self, job_id: str, lane: str, lease: datetime) -> float:
        now_s = self._clock.monotonic()
        first_s = self._first_seen.setdefault((job_id, lane, lease), now_s)
        if len(self._first_seen) > MAX_WATCHED:
            self._first_seen.popitem(last=False)
        return now_s - first_s
