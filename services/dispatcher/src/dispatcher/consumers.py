"""Which handler takes the messages of which queue."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

from dispatcher.handlers import Handlers
from dispatcher.settings import Settings
from parallax.bus.port import Bus, Delivery
from parallax.bus.serve import Handler, Serving, serve
from parallax.clock import Clock
from parallax.contracts.messages import BatchCompleted, BatchIncomplete, CancelJob, decode
from parallax.contracts.routing import DEAD_EXECUTIONS, PROGRESS, SUBMISSIONS, Queue
from parallax.errors import PoisonError

PROGRESS_SHARE: Final = 4
"""Times as many of the messages that move jobs are taken: those that wait are written together, see ``advancing``."""


def consumers(handlers: Handlers) -> dict[Queue, Handler]:
    """The handler of every queue that the dispatcher takes messages from."""
    return {
        SUBMISSIONS: handlers.submit,
        PROGRESS: partial(handle_progress, handlers),
        DEAD_EXECUTIONS: handlers.dead_execution,
    }


async def handle_progress(handlers: Handlers, delivery: Delivery) -> None:
    """Hand a message that may move a job to its handler.

    Raises:
        ValidationError: It is not a message.
        PoisonError: It is a message that does not belong here.
    """
    match decode(delivery.body):
        case CancelJob() as message:
            await handlers.cancel(message)
        case BatchCompleted() as message:
            await handlers.batch_completed(message)
        case BatchIncomplete() as message:
            await handlers.batch_incomplete(message)
        case message:
            raise PoisonError(f"{message.kind} does not belong into {PROGRESS.name}")


@asynccontextmanager
async def consuming(
    bus: Bus, handlers: Handlers, *, clock: Clock, settings: Settings
) -> AsyncIterator[tuple[Serving, ...]]:
    """Take messages from every queue; at the end handlers may finish within the grace period."""
    async with AsyncExitStack() as stack:
        servings: list[Serving] = []
        for queue, handler in consumers(handlers).items():
            prefetch = settings.prefetch * (PROGRESS_SHARE if queue is PROGRESS else 1)
            serving = await serve(bus, queue, prefetch=prefetch, handler=handler, clock=clock)
            stack.push_async_callback(serving.close, settings.grace_s)
            servings.append(serving)
        yield tuple(servings)
