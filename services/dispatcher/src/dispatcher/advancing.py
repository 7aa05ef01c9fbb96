"""Moves lanes on when their batches are complete; what completes while others are written is written together.

Under load many jobs complete a batch at once. Each would cost a transaction of four round trips and a confirm; a group
costs the same once. No job suffers from another: a group leaves out jobs that somebody else is working on, and one
that fails for whatever reason is taken apart. What was not written so is tried alone: it keeps nobody else waiting.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dispatcher.jobs import StoredJob
from dispatcher.progress import BatchCompleted, Event, Phase, Tally
from dispatcher.steps import Steps
from dispatcher.store import Store
from parallax.contracts import messages
from parallax.contracts.plan import BatchRef
from parallax.errors import UnavailableError
from parallax.telemetry import get_logger

log = get_logger(__name__)

TROUBLED_KEPT: Final = 10_000
"""Batches that are remembered to be tried alone; forgetting one costs others a wait."""


@dataclass(slots=True, eq=False)
class _Arrival:
    message: messages.BatchCompleted
    written: bool | None = None
    """Whether it was written with others; ``None`` until a group that holds it was tried."""


class Advancing:
    """The one way in which complete batches move jobs."""

    def __init__(self, store: Store, steps: Steps) -> None:
        self._store = store
        self._steps = steps
        self._arrived: list[_Arrival] = []
        self._turn = asyncio.Lock()
        self._troubled: set[BatchRef] = set()
        """What they need was away when they were last tried."""

    async def advance(self, message: messages.BatchCompleted) -> bool:
        """Move a lane on; returns whether jobs ended, so that there is room for others.

        Idempotent: the completion of a batch that is not open any more, or not yet, changes nothing.

        Raises:
            PoisonError: It cannot have happened to this job.
            UnavailableError: The bus or the database is away; repeat.
        """
        if message.batch not in self._troubled:
            mine = _Arrival(message)
            self._arrived.append(mine)
            ended = False
            async with self._turn:
                if mine.written is None:  # nobody took it along: it is our turn to take along all that has arrived
                    ended = await self._together(self._group(mine))
            if mine.written:
                return ended
        return await self._alone(message)

    def _group(self, mine: _Arrival) -> list[_Arrival]:
        """What is written together: one completion of each job, because the next one may build on it."""
        of_job = {mine.message.batch.job_id: mine}
        for each in self._arrived:
            of_job.setdefault(each.message.batch.job_id, each)
        group = list(of_job.values())
        self._arrived = [each for each in self._arrived if each not in group]
        return group

    async def _together(self, group: Sequence[_Arrival]) -> bool:
        """Try a group, and tell its members whether they were written; returns whether jobs ended."""
        written: set[str] = set()
        ended = False
        try:
            written, ended = await self._move([each.message for each in group], wait=False)
        except Exception as error:  # noqa: BLE001 - each of them meets its own error when it is tried alone
            log.info("batches_taken_apart", batches=len(group), error=repr(error)[:500])
        for each in group:
            each.written = each.message.batch.job_id in written
        return ended

    async def _alone(self, message: messages.BatchCompleted) -> bool:
        """Move one lane; while something it needs is away, it is not tried with others."""
        self._troubled.discard(message.batch)
        try:
            _, ended = await self._move([message], wait=True)
        except UnavailableError:
            if len(self._troubled) < TROUBLED_KEPT:
                self._troubled.add(message.batch)
            raise
        return ended

    async def _move(self, completed: Sequence[messages.BatchCompleted], *, wait: bool) -> tuple[set[str], bool]:
        """Move a lane of each job; returns whose was moved, and whether jobs ended."""
        async with self._store.work() as work:
            places = [(each.batch.job_id, each.batch.question_index) for each in completed]
            found = await work.lock_at(places, wait=wait)
            taken: list[tuple[StoredJob, Event]] = []
            for message in completed:
                job_id, lane, index = message.batch.job_id, message.batch.lane, message.batch.question_index
                job = found.get(job_id)
                if job is None:
                    if wait:
                        log.warning("unknown_batch_completed", job_id=job_id, lane=lane, question_index=index)
                    continue
                batch = job.progress.open_batch(lane)
                is_open = batch is not None and batch.index == index
                upcoming = await work.upcoming(job, lane, index) if is_open else None
                taken.append((job, BatchCompleted(lane, index, Tally(**message.counts.model_dump()), upcoming)))
            if len(taken) == 1:
                moved = [await self._steps.take(work, *taken[0])]
            else:
                moved = await self._steps.take_all(work, taken)
        ended = any(
            after.progress.phase is Phase.FINISHED and found[after.job_id].progress.phase is not Phase.FINISHED
            for after in moved
        )
        return set(found), ended
