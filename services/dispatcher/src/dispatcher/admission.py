"""Lets jobs in, in the order of their acceptance, while there is room."""

from typing import Final

from dispatcher.jobs import StoredJob
from dispatcher.progress import Start
from dispatcher.publishing import Publisher
from dispatcher.steps import Moved, Steps
from dispatcher.store import Store, WaitingJob, Work
from parallax.errors import UnavailableError
from parallax.telemetry import get_logger

log = get_logger(__name__)


PASSED_OVER: Final = 100
"""Jobs that may meet a bug before the line is looked at no further."""


class Admission:
    """Starts waiting jobs. One lock for all dispatchers keeps the number of active jobs exact."""

    def __init__(self, store: Store, steps: Steps, publisher: Publisher, *, max_active_jobs: int) -> None:
        self._store = store
        self._steps = steps
        self._publisher = publisher
        self._max_active_jobs = max_active_jobs

    async def fill(self, *, wait: bool = True) -> None:
        """Start jobs until there is no room or nobody waits. Each has a transaction of its own.

        Idempotent; called after whatever makes room or adds a job, and by the timer. A job that meets a bug
        stays where it is and is passed over, so that it does not block the rest. With ``wait`` the first batches are
        published before it returns, otherwise in the background.

        Raises:
            UnavailableError: The bus or the database is away; some jobs may have been started.
        """
        behind = 0
        for _ in range(self._max_active_jobs + PASSED_OVER):
            if not await self._store.any_queued():
                return
            position, moved = await self._start_next(behind)
            if position is None:
                return
            if moved is not None and wait:
                await self._publisher.publish(moved.outgoing)
            elif moved is not None:
                self._publisher.start(moved.outgoing)
            behind = position

    async def _start_next(self, behind: int) -> tuple[int | None, Moved | None]:
        """Start the first job that waits behind a position; its own is ``None`` when there is none or no room."""
        waiting: WaitingJob | None = None
        moved: Moved | None = None
        try:
            async with self._store.work() as work:
                await work.lock_admission()
                waiting = await work.lock_next_queued(behind, self._max_active_jobs)
                if waiting is not None:
                    moved = await self._steps.take(work, waiting.job, await _start(work, waiting.job))
        except UnavailableError:
            raise
        except Exception:
            if waiting is None:
                raise
            log.exception("job_not_started", job_id=waiting.job.job_id)
            return waiting.position, None
        return None if waiting is None else waiting.position, moved


async def _start(work: Work, job: StoredJob) -> Start:
    lanes = [lane.name for lane in job.progress.lanes]
    return Start(tuple([(lane, await work.upcoming(job, lane, -1)) for lane in lanes]))
