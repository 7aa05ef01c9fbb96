"""What tests of buses send, and how they hold what they receive."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from parallax.bus.port import Bus, Consumption, Delivery, Following
from parallax.contracts import routing
from parallax.contracts.messages import CancelJob, JobCancelled, decode
from parallax.contracts.outcomes import Reason
from parallax.contracts.routing import Queue
from parallax.errors import UnavailableError
from tests.contract.buses import WAIT_S

QUEUE = routing.PROGRESS
NOW = datetime(2026, 11, 23, tzinfo=UTC)


class Hands:
    """A consumer that keeps every delivery until the test settles it."""

    def __init__(self) -> None:
        self.held: list[Delivery] = []
        self._changed = asyncio.Event()

    def __call__(self, delivery: Delivery) -> None:
        self.held.append(delivery)
        self._changed.set()

    async def hold(self, count: int) -> list[Delivery]:
        """Wait until this many were delivered in all."""
        async with asyncio.timeout(WAIT_S):
            while len(self.held) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.held

    def jobs(self) -> list[str]:
        """The job ids of what was delivered."""
        return [job_of(delivery.body) for delivery in self.held]


def cancel(job_id: str) -> CancelJob:
    """A message for ``QUEUE``."""
    return CancelJob(job_id=job_id)


def cancelled(job_id: str) -> JobCancelled:
    """An entry of the cancellation stream."""
    return JobCancelled(job_id=job_id, reason=Reason(code="cancelled", message="by the test"), cancelled_at=NOW)


def job_of(body: bytes) -> str:
    """The job a message is about."""
    message = decode(body)
    assert isinstance(message, CancelJob | JobCancelled)
    return message.job_id


async def is_live(consumer: Consumption | Following) -> bool:
    """Ask again: a type checker takes a property for a constant."""
    return consumer.live


async def is_publishable(bus: Bus) -> bool:
    """Ask again: a type checker takes a property for a constant."""
    return bus.publishable


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what nothing announces."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


async def depth_becomes(bus: Bus, queue: Queue, count: int) -> None:
    """Wait until a queue holds so many waiting messages."""
    async with asyncio.timeout(WAIT_S):
        while await bus.depth(queue) != count:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.05)


async def publish_until_done(bus: Bus, message: CancelJob | JobCancelled) -> None:
    """Publish as services do: again, while the broker is unavailable."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await bus.publish(message)
            except UnavailableError:
                await asyncio.sleep(0.1)
            else:
                return
