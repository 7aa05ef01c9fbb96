"""Where followed jobs are: read once for all who follow the same job, and not more often than it is worth.

To know the progress of a job its batches are summed, which takes some milliseconds when there are 20,000 of them.
"""

import asyncio
from typing import Final, NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.clock import Clock
from results.api.queries import jobs
from results.api.queries.jobs import Moment
from results.api.queries.reading import reading

WORTH: Final = 10
"""What was read is kept for so many times the time it took: a job costs at most a tenth of a connection."""
LONGEST_KEPT_S: Final = 2.0
"""News reach followers within this time, however slow the database is."""
AT_ONCE: Final = 2
"""Jobs read at once, so that followers leave most connections to other readers."""
KEPT: Final = 256
"""More jobs than streams may be open by default."""


class _Kept(NamedTuple):
    moment: Moment | None
    until_s: float


class Moments:
    """The moments of one application's followed jobs."""

    def __init__(self, engine: AsyncEngine, clock: Clock, *, fresh_s: float) -> None:
        self._engine = engine
        self._clock = clock
        self._fresh_s = fresh_s
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._kept: dict[str, _Kept] = {}
        self._reading: dict[str, asyncio.Task[Moment | None]] = {}

    async def of(self, job_id: str) -> Moment | None:
        """Where a job is, or ``None`` for an unknown one; at most ``fresh_s`` or what it is worth ago.

        Raises:
            UnavailableError: The database is away.
        """
        kept = self._kept.get(job_id)
        if kept is not None and self._clock.monotonic() < kept.until_s:
            return kept.moment
        task = self._reading.get(job_id)
        if task is None:
            task = self._reading[job_id] = asyncio.create_task(self._read(job_id), name=f"progress of {job_id}")
            task.add_done_callback(lambda _: self._reading.pop(job_id))
        return await asyncio.shield(task)  # a follower that leaves takes nothing away from the others

    async def _read(self, job_id: str) -> Moment | None:
        began_s = self._clock.monotonic()
        async with self._turn, reading(self._engine) as connection:
            moment = await jobs.moment(connection, job_id)
        now_s = self._clock.monotonic()
        worth_s = min(WORTH * (now_s - began_s), LONGEST_KEPT_S)
        self._kept.pop(job_id, None)
        self._kept[job_id] = _Kept(moment, now_s + max(self._fresh_s, worth_s))
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return moment
