"""Takes facts and openings of batches and settles them in flushes: record, signal full batches, acknowledge.

A flush begins when the one before it is done and what waits is worth it (see ``ripeness``): one batch when little
happens, hundreds of facts under load. A crash between the three steps makes the bus deliver the facts again; the ledger
then finds nothing new, full batches are signalled again, and the facts are acknowledged.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.bus.port import Bus, Consumption, Delivery
from parallax.clock import Clock
from parallax.contracts.routing import FACTS
from parallax.errors import PoisonError, StaleDeliveryError, UnavailableError, UnroutableError
from parallax.health import STALLED_S
from parallax.telemetry import get_logger
from results import ledger
from results.batches import Batch
from results.facts import Fact, Opening, read_news
from results.ripeness import Ripeness
from results.substitutes import substitute

FLUSH_FACTS: Final = 300
"""Most facts in one transaction: more gain nothing measurable and hold the locks of their batches longer."""
FLUSH_BYTES: Final = 16 * 1024 * 1024
"""Most bytes in one transaction, so that long answers cannot fill the memory here or in the database."""
PREFETCH: Final = 2 * FLUSH_FACTS
"""The next flush arrives while one is written; quorum queues allow at most 2,000."""
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
"""Pauses double from the first to the longest: a restarted server is noticed within seconds and not hammered."""
BUG_PAUSE_S: Final = 1.0
"""Before a fact that met a bug goes back, so that it cannot spin through its deliveries."""
HOLD_LIMIT_S: Final = 60.0
"""Longest time facts are held while a server is away or refuses.

Afterwards they go back to the queue, once: another replica may still reach the server, and this process may give up
(after 120 s by default) without anything in its hands. They are taken again when the flush that failed can be written,
however long that takes: being delivered again and again would use up their deliveries and make dead letters of paid
answers.
"""

T = TypeVar("T")

log = get_logger(__name__)


class _Arrival(NamedTuple):
    """A delivery and what it says; read on arrival, while the database writes the flush before."""

    delivery: Delivery
    news: Fact | Opening | PoisonError


class _Held(NamedTuple):
    delivery: Delivery
    news: Fact | Opening


class Recorder:
    """The consumer of facts. Several may run at once, in one process or in many."""

    def __init__(self, *, bus: Bus, engine: AsyncEngine, clock: Clock) -> None:
        self._bus = bus
        self._engine = engine
        self._clock = clock
        self._waiting: deque[_Arrival] = deque()
        self._ripeness = Ripeness()
        self._consumption: Consumption | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._pausing = False
        self._suspended = False
        self._moved_at_s: float | None = None
        """When something was last written, or began to wait; ``None`` while nothing waits."""

    @property
    def live(self) -> bool:
        """Whether facts arrive and are being written right now."""
        return self._running and self._consumption is not None and self._consumption.live

    async def attached(self) -> bool:
        """A probe: the broker has this consumer, unless it waits for the database on purpose."""
        return self._running if self._suspended else self.live

    async def progressing(self) -> bool:
        """A probe: nothing waits, or something was written in the last ``STALLED_S``."""
        if self._suspended:
            return False
        return self._moved_at_s is None or self._clock.monotonic() - self._moved_at_s < STALLED_S

    @property
    def _running(self) -> bool:
        return self._task is not None and not self._task.done()

    async def start(self) -> None:
        """Begin to take facts."""
        await self._consume()
        self._task = asyncio.create_task(self._run(), name="record facts")

    async def close(self, grace_s: float = 0.0) -> None:
        """Take nothing more, write what is here within ``grace_s``, give the rest back.

        A flush that merely waits for a server to come back is not waited for.
        """
        self._closing = True
        if self._consumption is not None:
            await self._consumption.stop()
        self._ripeness.now()
        if self._task is not None:
            if not self._pausing:
                await asyncio.wait([self._task], timeout=grace_s)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._consumption is not None:
            await self._consumption.close()

    async def _consume(self) -> None:
        self._consumption = await self._bus.consume(FACTS, prefetch=PREFETCH, handler=self._take)

    def _take(self, delivery: Delivery) -> None:
        news = _read(delivery)
        if self._moved_at_s is None:
            self._moved_at_s = self._clock.monotonic()
        self._waiting.append(_Arrival(delivery, news))
        if not isinstance(news, PoisonError):
            self._ripeness.take(news)
        if isinstance(news, PoisonError) or len(self._waiting) >= FLUSH_FACTS:
            self._ripeness.now()

    async def _run(self) -> None:
        while self._waiting or not self._closing:
            await self._ripeness.wait()
            if not self._waiting:
                continue
            flush = self._next_flush()
            if self._waiting:
                self._ripeness.now()
            try:
                await self._settle(flush)
            except UnavailableError as error:
                if self._closing:
                    return
                await self._suspend(flush, error)
            self._moved_at_s = self._clock.monotonic() if self._waiting else None

    def _next_flush(self) -> list[_Arrival]:
        flush = [self._waiting.popleft()]
        size_bytes = len(flush[0].delivery.body)
        while self._waiting and len(flush) < FLUSH_FACTS:
            size_bytes += len(self._waiting[0].delivery.body)
            if size_bytes > FLUSH_BYTES:
                break
            flush.append(self._waiting.popleft())
        return flush

    async def _settle(self, flush: Sequence[_Arrival]) -> None:
        held: list[_Held] = []
        for delivery, news in flush:
            if isinstance(news, PoisonError):
                await self._refuse(delivery, news)
            else:
                held.append(_Held(delivery, news))
        if held:
            await self._record(held)

    async def _record(self, held: Sequence[_Held]) -> None:
        """Record, signal, acknowledge. A fact that the database refuses is found by halving, and spares the others."""
        news = [each.news for each in held]
        try:
            full = await self._patiently(lambda: ledger.record(self._engine, news, self._clock.now()))
        except (UnavailableError, asyncio.CancelledError):
            raise
        except Exception as error:
            if len(held) > 1:
                middle = len(held) // 2
                await self._record(held[:middle])
                await self._record(held[middle:])
            elif isinstance(error, PoisonError):
                await self._refuse(held[0].delivery, error)
            else:
                log.exception("fact_not_recorded", batch=news[0].size.key._asdict())
                await self._pause(BUG_PAUSE_S)
                await _unless_stale(held[0].delivery.requeue())
            return
        await self._signal(full)
        await _unless_stale(held[-1].delivery.ack(multiple=True))
        self._moved_at_s = self._clock.monotonic()

    async def _signal(self, full: Sequence[Batch]) -> None:
        if full:
            await self._patiently(lambda: self._bus.publish(*[batch.signal() for batch in full]))

    async def _refuse(self, delivery: Delivery, error: PoisonError) -> None:
        """Move a fact to the dead letters; the execution that it names has failed. Idempotent, in this order."""
        log.warning("fact_refused", reason=str(error))
        stand_in = substitute(delivery.body, str(error), self._clock.now())
        if stand_in is not None:
            await self._stand_in(stand_in)
        await self._patiently(lambda: _unless_stale(delivery.reject(str(error))))

    async def _stand_in(self, fact: Fact) -> None:
        try:
            full = await self._patiently(lambda: ledger.record(self._engine, [fact], self._clock.now()))
        except PoisonError as error:
            log.warning("refused_fact_not_replaced", reason=str(error))  # the dead letter is all there is
        else:
            await self._signal(full)

    async def _patiently(self, step: Callable[[], Awaitable[T]]) -> T:
        """The step's result, however often a server is away meanwhile.

        Raises:
            UnavailableError: It was away for ``HOLD_LIMIT_S``, or the recorder is closing.
        """
        pause_s, since = FIRST_PAUSE_S, self._clock.monotonic()
        while True:
            try:
                return await step()
            except (UnavailableError, UnroutableError) as error:
                if self._clock.monotonic() - since >= HOLD_LIMIT_S:
                    raise UnavailableError(str(error)) from error
                log.warning("server_unavailable", queue=FACTS.name, error=str(error), retry_in_s=pause_s)
                await self._pause(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _suspend(self, flush: Sequence[_Arrival], error: UnavailableError) -> None:
        """Give every fact back, and take them again once the flush that failed can be written.

        To write it without its deliveries is harmless: they come again, and the ledger then finds nothing new.
        """
        log.error("facts_given_back", error=str(error))
        assert self._consumption is not None
        self._suspended = True
        await self._consumption.close()
        self._waiting.clear()
        news = [each.news for each in flush if not isinstance(each.news, PoisonError)]
        while True:
            await self._pause(LONGEST_PAUSE_S)
            try:
                await self._try(news)
                await self._consume()
            except (UnavailableError, UnroutableError):
                continue
            self._suspended = False
            return

    async def _try(self, news: Sequence[Fact | Opening]) -> None:
        try:
            full = await ledger.record(self._engine, news, self._clock.now())
        except UnavailableError:
            raise
        except Exception:
            log.exception("flush_refused")
            return  # the database answers; which fact it is that cannot be written is found when they are back
        if full:
            await self._bus.publish(*[batch.signal() for batch in full])

    async def _pause(self, seconds: float) -> None:
        if self._closing:
            raise UnavailableError("closing")
        self._pausing = True
        try:
            await self._clock.sleep(seconds)
        finally:
            self._pausing = False


def _read(delivery: Delivery) -> Fact | Opening | PoisonError:
    try:
        return read_news(delivery.body)
    except PoisonError as error:
        return error


async def _unless_stale(settling: Awaitable[None]) -> None:
    """Settle a delivery, unless its channel is gone: then it will be delivered again."""
    try:
        await settling
    except StaleDeliveryError:
        log.info("delivery_went_stale", queue=FACTS.name)
