"""Moves lanes on when their batches are complete; what completes while others are written is written together.

Under load many jobs complete a batch at once. Each would cost a transaction of four round trips; a group costs the same
once. No job suffers from another: a group leaves out jobs that somebody else is working on, one that fails for whatever
reason is taken apart, and what follows is published for each job by itself, after the turn.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from dispatcher.jobs import StoredJob
from dispatcher.progress import BatchCompleted, Event, Tally
from dispatcher.publishing import Publisher
from dispatcher.steps import Moved, Steps
from dispatcher.store import Store
from parallax.contracts import messages
from parallax.telemetry import get_logger

log = get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Arrival:
    message: messages.BatchCompleted
    tried: bool = False
    """Whether a group that holds it was tried."""
    moved: Moved | None = None
    """What it did to its job, once it is written."""


class Advancing:
    """The one way in which complete batches move jobs."""

    def __init__(self, store: Store, steps: Steps, publisher: Publisher) -> None:
        self._store = store
        self._steps = steps
        self._publisher = publisher
        self._arrived: list[_Arrival] = []
        self._turn = asyncio.Lock()

    async def advance(self, message: messages.BatchCompleted) -> bool:
        """Move a lane on and publish what follows; returns whether the job ended, so that there is room for another.

        Idempotent: the completion of a batch that is not open any more, or not yet, changes nothing.

        Raises:
            PoisonError: It cannot have happened to this job.
            UnavailableError: The database or the bus is away; repeat.
        """
        moved = await self._moved(message)
        if moved is None:
            return False
        self._publisher.completed(message.batch)
        await self._publisher.publish(moved.outgoing)
        return moved.ended

    async def _moved(self, message: messages.BatchCompleted) -> Moved | None:
        mine = _Arrival(message)
        self._arrived.append(mine)
        async with self._turn:
            if not mine.tried:  # nobody took it along: it is our turn to take along all that has arrived
                await self._together(self._group(mine))
        if mine.moved is not None:
            return mine.moved
        moved = await self._move([message], wait=True)
        if not moved:
            log.warning("unknown_batch_completed", **message.batch.model_dump())
        return moved.get(message.batch.job_id)

    def _group(self, mine: _Arrival) -> list[_Arrival]:
        """What is written together: one completion of each job, because the next one may build on it."""
        of_job = {mine.message.batch.job_id: mine}
        for each in self._arrived:
            of_job.setdefault(each.message.batch.job_id, each)
        group = list(of_job.values())
        self._arrived = [each for each in self._arrived if each not in group]
        return group

    async def _together(self, group: Sequence[_Arrival]) -> None:
        """Write a group, without waiting for jobs that somebody else works on."""
        moved: dict[str, Moved] = {}
        try:
            moved = await self._move([each.message for each in group], wait=False)
        except Exception as error:  # noqa: BLE001 - each of them meets its own error when it is tried alone
            log.info("batches_taken_apart", batches=len(group), error=repr(error)[:500])
        for each in group:
            each.tried = True
            each.moved = moved.get(each.message.batch.job_id)

    async def _move(self, completed: Sequence[messages.BatchCompleted], *, wait: bool) -> dict[str, Moved]:
        """Move a lane of each job; returns what became of those that were found."""
        async with self._store.work() as work:
            places = [(each.batch.job_id, each.batch.question_index) for each in completed]
            found = await work.lock_at(places, wait=wait)
            taken: list[tuple[StoredJob, Event]] = []
            for message in completed:
                job_id, lane, index = message.batch.job_id, message.batch.lane, message.batch.question_index
                job = found.get(job_id)
                if job is None:
                    continue
                batch = job.progress.open_batch(lane)
                is_open = batch is not None and batch.index == index
                upcoming = await work.upcoming(job, lane, index) if is_open else None
                taken.append((job, BatchCompleted(lane, index, Tally(**message.counts.model_dump()), upcoming)))
            return {moved.job.job_id: moved for moved in await self._steps.take_all(work, taken)}
