"""The timer: deadlines, silent and abandoned batches, waiting jobs, and what the bus may have lost.

Several dispatchers may run it at once: each job is looked at under its row lock, and one that somebody else
has is passed over. The timer never waits for the broker to take what follows: that is published in the background.
"""

from datetime import datetime, timedelta
from typing import Final
from uuid import uuid4

from dispatcher.admission import Admission
from dispatcher.fences import Fences
from dispatcher.jobs import StoredJob, announcements
from dispatcher.leases import Leases
from dispatcher.outgoing import FencedBatch, abort
from dispatcher.progress import Phase
from dispatcher.publishing import Publisher
from dispatcher.steps import Moved, Steps
from dispatcher.store import Store, Work
from parallax.clock import Clock
from parallax.contracts.messages import Message
from parallax.errors import UnavailableError
from parallax.telemetry import get_logger

log = get_logger(__name__)

JOBS_PER_TICK: Final = 256
"""More than may be active by default; the rest is looked at in the next tick."""
ANNOUNCED_AGAIN: Final = 100
"""Ends of jobs announced again at once: far more than can be in flight when a bus is lost."""
STALE_AFTER_TICKS: Final = 30
"""A timer that has not come round for this many of its periods is reported as not working."""


class Reaper:
    """Looks after jobs that no message moves."""

    def __init__(
        self,
        *,
        store: Store,
        steps: Steps,
        publisher: Publisher,
        fences: Fences,
        admission: Admission,
        clock: Clock,
        timer_s: float,
        tombstones_kept_s: float,
    ) -> None:
        self._store = store
        self._steps = steps
        self._publisher = publisher
        self._fences = fences
        self._leases = Leases(clock)
        self._saying: set[str] = set()
        self._admission = admission
        self._clock = clock
        self._timer_s = timer_s
        self._tombstones_kept = timedelta(seconds=tombstones_kept_s)
        self._last_tick_s: float | None = None

    async def working(self) -> bool:
        """Whether the timer came round lately."""
        if self._last_tick_s is None:
            return False
        return self._clock.monotonic() - self._last_tick_s <= STALE_AFTER_TICKS * max(self._timer_s, 1.0)

    async def run(self) -> None:
        """Tick for ever. A tick that fails is logged and the next one tries again."""
        while True:
            try:
                await self.tick()
            except UnavailableError as error:
                log.warning("timer_waits_for_server", error=str(error))
            except Exception:
                log.exception("timer_failed")
            else:
                self._last_tick_s = self._clock.monotonic()
            await self._clock.sleep(self._timer_s)

    async def tick(self) -> None:
        """Do once whatever is due.

        Raises:
            UnavailableError: The bus or the database is away.
        """
        now, token = self._clock.now(), uuid4().hex
        async with self._store.work() as work:
            due = await work.due(now, JOBS_PER_TICK)
        fenced: list[FencedBatch] = []
        for job_id in due:
            fenced += await self._look_at(job_id, now, token)
        await self._fences.publish(token, fenced)
        await self._admission.fill(wait=False)
        await self._publisher.mark()
        async with self._store.work() as work:
            await work.forget_tombstones(now - self._tombstones_kept)

    async def _look_at(self, job_id: str, now: datetime, token: str) -> tuple[FencedBatch, ...]:
        """Tick one job; one that meets a bug must not keep the timer from the others."""
        words: tuple[Message, ...] = ()
        moved: Moved | None = None
        try:
            async with self._store.work() as work:
                job = await work.lock_due(job_id, now)
                if job is not None and job.progress.phase is Phase.FINISHED:
                    words = await _last_words(work, job, now)
                elif job is not None:
                    abandoned = self._leases.abandoned(job, now)
                    moved = await self._steps.take(work, job, self._steps.tick(now, token, abandoned=abandoned))
            if words and job_id not in self._saying:
                self._saying.add(job_id)
                self._publisher.in_background(self._say(job_id, words))
        except UnavailableError:
            raise
        except Exception:
            log.exception("timer_failed_for_job", job_id=job_id)
        if moved is None:
            return ()
        self._publisher.start(moved.outgoing)
        return moved.outgoing.fences

    async def _say(self, job_id: str, words: tuple[Message, ...]) -> None:
        """Repeat what was announced about a job that has ended, and write down that it was repeated.

        Nothing follows the last message, so nothing would show its loss, as when a broker lost its disk.
        """
        try:
            await self._publisher.announce(*words)
            async with self._store.work() as work:
                await work.rest(job_id)
        finally:
            self._saying.discard(job_id)

    async def resume(self) -> None:
        """Take up where a process stopped whose bus was lost with it: repeat what may have been lost and inspect
        every open batch at once. Idempotent; consumers of announcements take repetitions.

        Raises:
            UnavailableError: The bus or the database is away.
        """
        async with self._store.work() as work:
            ended = await work.newest_finished(ANNOUNCED_AGAIN)
            unfinished = await work.unfinished()
        await self._publisher.announce(*ended)
        token = uuid4().hex
        fenced: list[FencedBatch] = []
        for job_id in unfinished:
            fenced += await self._resume(job_id, token)
        await self._fences.publish(token, fenced)

    async def _resume(self, job_id: str, token: str) -> tuple[FencedBatch, ...]:
        async with self._store.work() as work:
            job, submitted = await work.lock(job_id), await work.submitted(job_id)
            if job is None or submitted is None:
                return ()
            every = frozenset(lane.name for lane in job.progress.lanes)
            moved = await self._steps.take(
                work, job, self._steps.tick(self._clock.now(), token, abandoned=every, at_once=True)
            )
        await self._publisher.announce(*announcements(job, submitted.accepted))
        await self._publisher.publish(moved.outgoing)
        log.info("job_resumed", job_id=job_id, phase=job.progress.phase.value)
        return moved.outgoing.fences


async def _last_words(work: Work, job: StoredJob, now: datetime) -> tuple[Message, ...]:
    """Everything that was announced about a job that has ended; whoever knows it already keeps what it knows."""
    accepted, finished = await work.last_words(job.job_id)
    stopped = (abort(job, now),) if job.progress.ending is not None and not job.progress.ending.announced else ()
    return (*announcements(job, accepted), *stopped, finished)
