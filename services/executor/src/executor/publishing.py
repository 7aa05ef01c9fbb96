"""Publishes facts and tasks that leave, then settles the deliveries they came from: never the other way round.

One task publishes in groups: facts that end while a group is on its way form the next one, so that confirms are
shared under load and nothing waits for a timer. It is a task of its own so that what it does is never inside the
scope of a cancelled execution.

A fact may be published twice: the ledger takes the first. A task may not: two copies can reach two executors, which
would both call the model. When the outcome of publishing a task is unknown it is not repeated, and its delivery is
settled all the same: one copy exists, or none, and none is what the dispatcher's inspection finds missing and repairs.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from parallax.bus.port import Bus, Delivery
from parallax.clock import Clock
from parallax.contracts.messages import ExecutionTask, Message
from parallax.errors import PoisonError, StaleDeliveryError, UnavailableError, UnconfirmedError, UnroutableError
from parallax.telemetry import get_logger

log = get_logger(__name__)

MAX_GROUP: Final = 64
"""Facts published together: enough to share a confirm, few enough that the first does not wait for the last."""
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0


async def ack(delivery: Delivery) -> None:
    """Settle a delivery whose work is done."""
    await delivery.ack()


def _nothing(message: Message | None) -> None:
    """For parcels that nobody waits for."""


@dataclass(slots=True, eq=False)
class Parcel:
    """What is to be published, and the deliveries that it settles."""

    deliveries: list[Delivery]
    """Read when the parcel has been published: deliveries that were added meanwhile are settled too."""
    make: Callable[[], Message] | None = None
    """Called once, just before publishing; ``None`` when there is nothing to say."""
    settle: Callable[[Delivery], Awaitable[None]] = ack
    settled: Callable[[Message | None], None] = _nothing


def left_to_publish(messages: Sequence[Message], error: Exception) -> tuple[list[Message], list[ExecutionTask]]:
    """After a publish that failed: what is to be published again, and the tasks that must not be. Pure."""
    if isinstance(error, UnroutableError) and error.messages:
        return list(error.messages), []  # the others were delivered
    if isinstance(error, UnavailableError | PoisonError) and not isinstance(error, UnconfirmedError):
        return list(messages), []  # nothing was sent
    tasks = [message for message in messages if isinstance(message, ExecutionTask)]
    return [message for message in messages if not isinstance(message, ExecutionTask)], tasks


@dataclass(slots=True, eq=False)
class Publisher:
    """The way out of an executor, in order."""

    bus: Bus
    clock: Clock
    _waiting: deque[Parcel] = field(default_factory=deque)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, parcel: Parcel) -> None:
        """Publish soon."""
        self._waiting.append(parcel)
        self._idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Publish for ever; cancelled when the executor has left."""
        while True:
            if not self._waiting:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
            group = [self._waiting.popleft() for _ in range(min(MAX_GROUP, len(self._waiting)))]
            made = [(parcel, parcel.make() if parcel.make is not None else None) for parcel in group]
            await self._publish([message for _, message in made if message is not None])
            for parcel, message in made:
                await self._settle(parcel, message)

    async def drained(self, timeout_s: float) -> bool:
        """Wait until everything is out; false when that takes too long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def _publish(self, messages: Sequence[Message]) -> None:
        """Publish, however long the bus is away: the deliveries are still ours, and if not, somebody has them.

        A task that may be in its queue already is not repeated: two executors would run it. If it is not there, an
        inspection finds out.
        """
        pause_s = FIRST_PAUSE_S
        while messages:
            try:
                await self.bus.publish(*messages)
            except Exception as error:  # noqa: BLE001 - the way out must never close; the bus reports what is wrong
                messages, unknown = left_to_publish(messages, error)
                log.warning("publishing failed", error=repr(error)[:500], again=len(messages), unknown=len(unknown))
                for task in unknown:
                    log.warning("unknown whether a task was published", execution_id=str(task.execution_id))
                if not messages:
                    return
                await self.clock.sleep(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            else:
                return

    async def _settle(self, parcel: Parcel, message: Message | None) -> None:
        while parcel.deliveries:
            delivery = parcel.deliveries.pop()
            try:
                await parcel.settle(delivery)
            except StaleDeliveryError:
                pass  # it comes again, and is answered from memory
            except UnavailableError as error:
                log.warning("a delivery could not be settled and will come again", error=str(error)[:500])
            except Exception:
                log.exception("a delivery could not be settled and will come again")
        parcel.settled(message)
