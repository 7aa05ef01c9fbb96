"""Publishes the executions of batches: each at most once, and only under a lease.

* A chunk is published only while the lease is fresh. A dispatcher that is slow renews it; one that was stopped for a
  minute finds that it cannot, and leaves the rest to whoever inspects the batch.
* A chunk is repeated only when nothing of it was sent. When the outcome is unknown the batch is left to an inspection.
* A large batch is fed to its regions, so that the tasks of other jobs get in between.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from itertools import chain, islice
from typing import Final

from dispatcher.outgoing import Opening
from dispatcher.pace import Pace
from dispatcher.progress import Renew
from dispatcher.steps import Steps
from dispatcher.store import Store
from parallax.bus.port import Bus
from parallax.clock import Clock
from parallax.contracts.messages import ExecutionTask, Message
from parallax.contracts.plan import Cell
from parallax.contracts.routing import executions, waiting
from parallax.errors import UnavailableError, UnconfirmedError
from parallax.telemetry import get_logger

log = get_logger(__name__)

RENEW_AFTER_S: Final = 10.0
"""Nothing is published under a lease older than this: a third of its time, so that what is on its way to the broker
when the dispatcher is stopped is early enough all the same."""
CHUNK_BYTES: Final = 1024 * 1024
"""Text of prompts published together: a legal batch has 256 MiB of it, which are made and sent bit by bit."""
FEED_POLL_S: Final = 0.2
"""Between two looks at a queue that is full enough: in it an executor seldom ends more than a few calls."""
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0


@dataclass(slots=True)
class _Held:
    """An opening while it is published here."""

    opening: Opening
    lease: datetime
    since_s: float
    sent: int = 0


class _Fed(Enum):
    """How far the feeding of one region is."""

    FULL = "full"
    MORE = "more"
    ENDED = "ended"
    GIVEN_UP = "given up"


class BatchPublisher:
    """Publishes openings under their leases."""

    def __init__(self, *, bus: Bus, store: Store, steps: Steps, clock: Clock, pace: Pace) -> None:
        self._bus = bus
        self._store = store
        self._steps = steps
        self._clock = clock
        self._pace = pace
        self._feeding: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def is_large(self, opening: Opening) -> bool:
        """Whether it has to be fed."""
        sizes: defaultdict[str, int] = defaultdict(int)
        for cell in opening.cells:
            sizes[cell.region] += 1
        return max(sizes.values(), default=0) > self._pace.direct

    async def publish(self, opening: Opening) -> datetime | None:
        """Publish a whole opening; returns its last lease, or ``None`` when the rest is left to an inspection.

        Raises:
            UnroutableError, PoisonError: The job cannot be published.
        """
        held = _Held(opening, opening.lease, opening.leased_s)
        if self.is_large(opening):
            return held.lease if await self._feed(held) else None
        for chunk in _chunks(chain((opening.announcement(),), opening.tasks()), self._pace.chunk):
            if not await self._send(held, chunk):
                return None
        return held.lease

    async def _feed(self, held: _Held) -> bool:
        """Publish to each region only while few tasks wait there.

        So a short job waits behind the tasks that wait already, not behind all of this batch; and a model that accepts
        no calls holds back its own tasks alone.
        """
        opening = held.opening
        if not await self._send(held, [opening.announcement()]):
            return False
        left = {share: _tasks_of(opening, *share) for share in dict.fromkeys(map(_share, opening.cells))}
        while left:
            states = {share: await self._feed_share(held, *share, tasks) for share, tasks in left.items()}
            if _Fed.GIVEN_UP in states.values():
                return False
            left = {share: tasks for share, tasks in left.items() if states[share] is not _Fed.ENDED}
            if left and _Fed.MORE not in states.values():
                await self._clock.sleep(FEED_POLL_S)
                if not await self._holds(held):
                    return False
        return True

    async def _feed_share(self, held: _Held, region: str, model_id: str, tasks: Iterator[ExecutionTask]) -> _Fed:
        """Add some tasks of a model where at most half of what may wait does; batches take turns."""
        some = max(1, self._pace.direct // 2)
        async with self._feeding[region]:
            try:
                room = await self._has_room(held.opening, region, model_id, most=some)
            except UnavailableError:
                room = False
            if not room:
                return _Fed.FULL
            fed = list(islice(tasks, some))
            for chunk in _chunks(fed, self._pace.chunk):
                if not await self._send(held, chunk):
                    return _Fed.GIVEN_UP
        return _Fed.MORE if len(fed) == some else _Fed.ENDED

    async def _has_room(self, opening: Opening, region: str, model_id: str, *, most: int) -> bool:
        """Whether few tasks wait for the region, and few for the model there, which may accept no calls just now."""
        if await self._bus.depth(executions(region)) > most:
            return False
        model = next(model.catalog_name for model in opening.job.template.models if model.id == model_id)
        return await self._bus.depth(waiting(region, model)) <= most

    async def _send(self, held: _Held, chunk: list[Message]) -> bool:
        """Publish a chunk once; false when it must be left to an inspection."""
        pause_s = FIRST_PAUSE_S
        while await self._holds(held):
            try:
                await self._bus.publish(*chunk)
            except UnconfirmedError as error:
                self._leave(held, "unconfirmed", in_doubt=len(chunk), error=str(error))
                return False
            except UnavailableError:
                await self._clock.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                held.sent += len(chunk)
                return True
        self._leave(held, "lease_lost")
        return False

    async def _holds(self, held: _Held) -> bool:
        """Whether the lease is fresh, if need be after renewing it; waits for a database that is away."""
        pause_s = FIRST_PAUSE_S
        while self._clock.monotonic() - held.since_s > RENEW_AFTER_S:
            try:
                if not await self._renew(held):
                    return False
            except UnavailableError:
                await self._clock.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return True

    async def _renew(self, held: _Held) -> bool:
        """Ask for more time; false when the batch is closed, complete, or in the hands of somebody else."""
        ref, since_s = held.opening.ref, self._clock.monotonic()
        async with self._store.work() as work:
            job = await work.lock(ref.job_id)
            if job is None:
                return False
            moved = await self._steps.take(work, job, Renew(ref.lane, ref.question_index, held.lease))
        batch = moved.job.progress.open_batch(ref.lane)
        if batch is None or batch.opening_until is None or moved.job.progress == job.progress:
            return False
        held.lease, held.since_s = batch.opening_until, since_s
        return True

    @staticmethod
    def _leave(held: _Held, why: str, **details: object) -> None:
        ref = held.opening.ref
        log.warning(
            "batch_left_to_inspection",
            job_id=ref.job_id,
            lane=ref.lane,
            question_index=ref.question_index,
            why=why,
            executions=len(held.opening.cells),
            messages_sent=held.sent,
            **details,
        )


def _share(cell: Cell) -> tuple[str, str]:
    return cell.region, cell.model_id


def _tasks_of(opening: Opening, region: str, model_id: str) -> Iterator[ExecutionTask]:
    return opening.tasks(cell for cell in opening.cells if _share(cell) == (region, model_id))


def _chunks(messages: Iterable[Message], most: int) -> Iterator[list[Message]]:
    """The messages in their order, as many at a time as are published together."""
    chunk: list[Message] = []
    size_bytes = 0
    for message in messages:
        more = _text_bytes(message)
        if chunk and (len(chunk) == most or size_bytes + more > CHUNK_BYTES):
            yield chunk
            chunk, size_bytes = [], 0
        chunk.append(message)
        size_bytes += more
    if chunk:
        yield chunk


def _text_bytes(message: Message) -> int:
    if not isinstance(message, ExecutionTask):
        return 0
    return sum(len(prompt.content.encode()) for prompt in message.messages)
