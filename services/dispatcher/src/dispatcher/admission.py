"""Lets jobs in, in the order of their acceptance, while there is room."""

from dispatcher.jobs import StoredJob
from dispatcher.progress import Start
from dispatcher.steps import Steps
from dispatcher.store import Store, Work


class Admission:
    """Starts waiting jobs. One lock for all dispatchers keeps the number of active jobs exact."""

    def __init__(self, store: Store, steps: Steps, *, max_active_jobs: int) -> None:
        self._store = store
        self._steps = steps
        self._max_active_jobs = max_active_jobs

    async def fill(self) -> None:
        """Start jobs until there is no room or nobody waits. One job per transaction, so it ends after at most
        ``max_active_jobs`` of them. Idempotent; called after whatever makes room or adds a job, and by the timer.

        Raises:
            UnavailableError: The bus or the database is away; some jobs may have been started.
        """
        for _ in range(self._max_active_jobs):
            if not await self._start_one():
                return

    async def _start_one(self) -> bool:
        async with self._store.work() as work:
            if not await work.any_queued():
                return False
            await work.lock_admission()
            if await work.count_active() >= self._max_active_jobs:
                return False
            job = await work.lock_next_queued()
            if job is None:
                return False
            await self._steps.take(work, job, await _start(work, job))
            return True


async def _start(work: Work, job: StoredJob) -> Start:
    lanes = [lane.name for lane in job.progress.lanes]
    return Start(tuple([(lane, await work.upcoming(job, lane, -1)) for lane in lanes]))
