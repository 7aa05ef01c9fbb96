"""Run an asynchronous handler for every delivery of a queue, and settle each according to one table.

| the handler | the delivery |
| --- | --- |
| returns | is acknowledged |
| raises ``UnavailableError`` | is kept and tried again after a pause; after ``HOLD_LIMIT_S`` it goes back |
| raises ``UnconfirmedError`` | likewise: handlers are idempotent, and know what they must not publish again |
| raises ``PoisonError`` or ``ValidationError`` | goes to the dead letters with the reason |
| raises ``ValidationError`` for an unknown kind, on a queue of ``news`` | is acknowledged, logged and counted |
| raises anything else (a bug) | is logged and, after a pause, goes back; the bus gives up after ``MAX_DELIVERIES`` |
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from pydantic import ValidationError

from parallax.bus.ignored import ignored
from parallax.bus.port import Bus, Consumption, Delivery
from parallax.clock import Clock
from parallax.contracts.routing import Queue
from parallax.errors import PoisonError, StaleDeliveryError, UnavailableError
from parallax.telemetry import get_logger

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0
"""Pauses double from the first to the longest: a restarted server is noticed within seconds and not hammered."""
BUG_PAUSE_S: Final = 1.0
"""Before a message that met a bug goes back: keeps a poisonous one from spinning through its deliveries."""
HOLD_LIMIT_S: Final = 900.0
"""Longest time one delivery is kept; well below the broker's consumer timeout of 30 minutes.

The watchdog ends a process whose servers are lost long before this. It does not end one whose server answers and
refuses (a broker under a resource alarm, a read-only database), because no restart helps: there this is the bound.
"""

Handler = Callable[[Delivery], Awaitable[None]]

log = get_logger(__name__)


class Serving:
    """The handlers at work on one queue. Made by :func:`serve`."""

    def __init__(self, bus: Bus, queue: Queue, *, prefetch: int, handler: Handler, clock: Clock) -> None:
        self._bus = bus
        self._queue = queue
        self._prefetch = prefetch
        self._handler = handler
        self._clock = clock
        self._consumption: Consumption | None = None
        self._working: set[asyncio.Task[None]] = set()
        self._pausing: set[asyncio.Task[None]] = set()
        self._closing = False

    @property
    def live(self) -> bool:
        """Whether the broker has the consumer right now."""
        return self._consumption is not None and self._consumption.live

    @property
    def in_flight(self) -> int:
        """Deliveries in the hands of the handler."""
        return len(self._working)

    async def start(self) -> None:
        """Begin to take deliveries."""
        self._consumption = await self._bus.consume(self._queue, prefetch=self._prefetch, handler=self._take)

    async def close(self, grace_s: float = 0.0) -> None:
        """Take nothing more, let handlers finish for at most ``grace_s``, give the rest back.

        A handler that merely waits for a server to come back is not waited for.
        """
        self._closing = True
        if self._consumption is not None:
            await self._consumption.stop()
        for task in tuple(self._pausing):
            task.cancel()
        if self._working and grace_s > 0:
            await asyncio.wait(self._working, timeout=grace_s)
        for task in tuple(self._working):
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)
        if self._consumption is not None:
            await self._consumption.close()

    def _take(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._settle(delivery), name=f"serve {self._queue.name}")
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    async def _settle(self, delivery: Delivery) -> None:
        try:
            await self._handle(delivery)
        except StaleDeliveryError:
            log.info("delivery_went_stale", queue=self._queue.name)
        except UnavailableError as error:
            log.warning("delivery_not_settled", queue=self._queue.name, error=str(error))

    async def _handle(self, delivery: Delivery) -> None:
        pause_s, since = FIRST_PAUSE_S, self._clock.monotonic()
        while True:
            try:
                await self._run(delivery)
            except StaleDeliveryError:
                raise
            except UnavailableError as error:
                log.warning("server_unavailable", queue=self._queue.name, error=str(error), retry_in_s=pause_s)
                await self._pause(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                if self._clock.monotonic() - since >= HOLD_LIMIT_S:
                    await delivery.requeue()
                    return
            except (PoisonError, ValidationError) as error:
                if ignored(self._queue, error):
                    await delivery.ack()
                    return
                await self._reject(delivery, str(error))
                return
            except Exception:
                log.exception("handler_failed", queue=self._queue.name, delivery_count=delivery.delivery_count)
                await self._pause(BUG_PAUSE_S)
                await delivery.requeue()
                return
            else:
                await delivery.ack()
                return

    async def _run(self, delivery: Delivery) -> None:
        """The handler; a ``CancelledError`` that leaked out of a library is a bug like any other."""
        try:
            await self._handler(delivery)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise RuntimeError("the handler was cancelled from within") from error

    async def _reject(self, delivery: Delivery, reason: str) -> None:
        log.warning("dead_letter", queue=self._queue.name, reason=reason)
        while True:
            try:
                await delivery.reject(reason)
            except UnavailableError:
                await self._pause(LONGEST_PAUSE_S)  # ends when the broker is back, or the delivery has gone stale
            else:
                return

    async def _pause(self, seconds: float) -> None:
        """Wait; cut short by ``close``, which leaves the delivery unsettled."""
        task = asyncio.current_task()
        assert task is not None
        if self._closing:
            raise UnavailableError("closing")
        self._pausing.add(task)
        try:
            await self._clock.sleep(seconds)
        finally:
            self._pausing.discard(task)


async def serve(bus: Bus, queue: Queue, *, prefetch: int, handler: Handler, clock: Clock) -> Serving:
    """Run ``handler`` for every delivery of ``queue``, up to ``prefetch`` at once, until the result is closed."""
    serving = Serving(bus, queue, prefetch=prefetch, handler=handler, clock=clock)
    await serving.start()
    return serving
