"""Publishes what committed steps leave behind, outside every transaction."""

import asyncio
from collections.abc import Coroutine, Mapping
from datetime import datetime
from typing import Final

from prometheus_client import Counter

from dispatcher.batches import FIRST_PAUSE_S, LONGEST_PAUSE_S, BatchPublisher
from dispatcher.outgoing import Opening, Outgoing
from dispatcher.progress import AbortAnnounced, GiveUp, Phase, Published
from dispatcher.steps import Steps
from dispatcher.store import Store
from parallax.bus.port import Bus
from parallax.clock import Clock
from parallax.contracts.messages import Message
from parallax.contracts.plan import BatchRef
from parallax.errors import PoisonError, UnavailableError, UnroutableError
from parallax.telemetry import get_logger
from parallax.text import storable

log = get_logger(__name__)

BATCHES_OPENED: Final = Counter("parallax_dispatcher_batches_opened", "Batches whose executions were published")

MARK_AFTER_S: Final = 5.0
"""Most small batches complete sooner, which says the same without another write."""
ANNOUNCE_FOR_S: Final = 60.0
"""How long an announcement is tried; the timer repeats what was not announced then."""


class Publisher:
    """Publishes whatever follows a step. A job that cannot be published is given up, and harms no other."""

    def __init__(self, *, bus: Bus, store: Store, steps: Steps, batches: BatchPublisher, clock: Clock) -> None:
        self._bus = bus
        self._store = store
        self._steps = steps
        self._batches = batches
        self._clock = clock
        self._published: dict[BatchRef, tuple[datetime, float]] = {}
        """Batches that this dispatcher has published: their leases, and when."""
        self._working: set[asyncio.Task[None]] = set()

    async def publish(self, outgoing: Outgoing) -> None:
        """Publish announcements and small batches; large ones are fed in the background.

        Raises:
            UnavailableError: An announcement could not be published; the timer repeats those that matter.
        """
        await self.announce(*outgoing.announcements)
        if outgoing.aborts:
            await self._abort_announced(outgoing.job_id)
        for opening in outgoing.openings:
            if self._batches.is_large(opening):
                self.in_background(self._open(opening))
            else:
                await self._open(opening)

    def start(self, outgoing: Outgoing) -> None:
        """The same in the background: the timer must go on whatever the broker does."""
        if outgoing.announcements or outgoing.openings:
            self.in_background(self.publish(outgoing))

    def in_background(self, work: Coroutine[None, None, None]) -> None:
        """Publish something beside whatever else goes on; what fails is left to the timer."""
        task = asyncio.create_task(_guarded(work), name="publish")
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    async def announce(self, *announcements: Message) -> None:
        """Publish messages that may be repeated at will, until they are confirmed.

        Raises:
            UnavailableError: The bus was away for too long.
        """
        if not announcements:
            return
        pause_s, until_s = FIRST_PAUSE_S, self._clock.monotonic() + ANNOUNCE_FOR_S
        while True:
            try:
                await self._bus.publish(*announcements)
            except UnavailableError:
                if self._clock.monotonic() + pause_s > until_s:
                    raise
                await self._clock.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                return

    def completed(self, ref: BatchRef) -> None:
        """A batch is complete: its executions were published, and that need not be written down."""
        self._published.pop(ref, None)

    async def mark(self) -> None:
        """Write down which batches are published, those of all jobs together.

        A crash before that costs an inspection, and so does a job that somebody else is working on just now.

        Raises:
            UnavailableError: The database is away.
        """
        now_s = self._clock.monotonic()
        ripe = {ref: lease for ref, (lease, since_s) in self._published.items() if now_s - since_s >= MARK_AFTER_S}
        if not ripe:
            return
        async with self._store.work() as work:
            jobs = await work.lock_free([*{ref.job_id for ref in ripe}])
            await self._steps.take_all(work, [(job, _of_job(job.job_id, ripe)) for job in jobs])
        for ref in ripe:
            self._published.pop(ref, None)

    async def close(self, grace_s: float) -> None:
        """Let what is being published end within the grace; what is left is inspected when its lease has run out."""
        if self._working:
            await asyncio.wait(self._working, timeout=grace_s)
        for task in tuple(self._working):
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)

    async def _open(self, opening: Opening) -> None:
        try:
            lease = await self._batches.publish(opening)
        except (UnroutableError, PoisonError) as error:
            await self._give_up(opening.ref.job_id, error)
            return
        if lease is None:
            return
        self._published[opening.ref] = lease, self._clock.monotonic()
        BATCHES_OPENED.inc()
        log.info(
            "batch_opened",
            job_id=opening.ref.job_id,
            question_id=opening.batch.plan.question_id,
            lane=opening.ref.lane,
            executions=len(opening.cells),
        )

    async def _give_up(self, job_id: str, error: Exception) -> None:
        """End a job whose executions no queue takes: its region has left the installation, and neither waiting nor
        another region may stand in for it."""
        log.warning("job_undeliverable", job_id=job_id, error=str(error)[:500])
        async with self._store.work() as work:
            job = await work.lock(job_id)
            if job is None:
                return
            moved = await self._steps.take(work, job, GiveUp(storable(str(error))))
        await self.publish(moved.outgoing)

    async def _abort_announced(self, job_id: str) -> None:
        async with self._store.work() as work:
            job = await work.lock(job_id)
            if job is not None and job.progress.phase is Phase.ENDING:
                await self._steps.take(work, job, AbortAnnounced())


async def _guarded(work: Coroutine[None, None, None]) -> None:
    try:
        await work
    except UnavailableError as error:
        log.warning("not_published", error=str(error))
    except Exception:
        log.exception("publishing_failed")


def _of_job(job_id: str, ripe: Mapping[BatchRef, datetime]) -> Published:
    return Published(
        tuple((ref.lane, ref.question_index, lease) for ref, lease in ripe.items() if ref.job_id == job_id)
    )
