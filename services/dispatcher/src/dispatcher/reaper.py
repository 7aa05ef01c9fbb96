"""The timer: deadlines, silent batches, waiting jobs, and what the bus may have lost.

Several dispatchers may run it at once: each job is looked at under its row lock, and one that somebody else
has is passed over.
"""

from datetime import datetime, timedelta
from typing import Final

from dispatcher.admission import Admission
from dispatcher.jobs import announcements
from dispatcher.progress import Phase, Tick
from dispatcher.steps import Steps
from dispatcher.store import Store
from parallax.bus.port import Bus
from parallax.clock import Clock
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
        bus: Bus,
        store: Store,
        steps: Steps,
        admission: Admission,
        clock: Clock,
        timer_s: float,
        tombstones_kept_s: float,
    ) -> None:
        self._bus = bus
        self._store = store
        self._steps = steps
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
        now = self._clock.now()
        async with self._store.work() as work:
            due = await work.due(now, JOBS_PER_TICK)
        for job_id in due:
            await self._look_at(job_id, now)
        await self._admission.fill()
        async with self._store.work() as work:
            await work.forget_tombstones(now - self._tombstones_kept)

    async def _look_at(self, job_id: str, now: datetime) -> None:
        """Tick one job; one that meets a bug must not keep the timer from the others."""
        try:
            async with self._store.work() as work:
                job = await work.lock_due(job_id, now)
                if job is not None and job.progress.phase is Phase.FINISHED:
                    # Nothing follows the last message, so nothing would show its loss, as when a broker lost its disk.
                    await self._bus.publish(*await work.last_words(job_id))
                elif job is not None:
                    await self._steps.take(work, job, Tick(asked_before=now - self._steps.inspect_after))
        except UnavailableError:
            raise
        except Exception:
            log.exception("timer_failed_for_job", job_id=job_id)

    async def resume(self) -> None:
        """Take up where a process stopped whose bus was lost with it: say again what may have been lost and ask
        about every open batch at once. Idempotent; consumers of announcements take repetitions.

        Raises:
            UnavailableError: The bus or the database is away.
        """
        async with self._store.work() as work:
            ended = await work.newest_finished(ANNOUNCED_AGAIN)
            unfinished = await work.unfinished()
        await self._bus.publish(*ended)
        for job_id in unfinished:
            await self._resume(job_id)

    async def _resume(self, job_id: str) -> None:
        async with self._store.work() as work:
            job, submitted = await work.lock(job_id), await work.submitted(job_id)
            if job is None or submitted is None:
                return
            await self._bus.publish(*announcements(job, submitted.accepted))
            await self._steps.take(work, job, Tick(asked_before=self._clock.now()))
        log.info("job_resumed", job_id=job_id, phase=job.progress.phase.value)
