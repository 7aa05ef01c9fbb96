"""What a contender is to the benchmark: services that run, a way to give them jobs, and rows to read."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aio_pika
from aio_pika.abc import AbstractChannel

from tests.benchmarks.compare.figures import Load
from tests.benchmarks.compare.ledger import Ledger
from tests.benchmarks.compare.service import ContenderFailedError, Service

REPOSITORY: Final = Path(__file__).parents[3]
READY_TIMEOUT_S: Final = 180.0


@dataclass(frozen=True, slots=True)
class Site:
    """The servers that every contender uses, and how large its messages are."""

    amqp_url: str
    database_url: str
    """A database of the contender's own."""
    folder: Path
    task_bytes: int
    fact_bytes: int


@dataclass(frozen=True, slots=True)
class Stack:
    """A contender that is running."""

    services: tuple[Service, ...]
    ledger: Ledger
    submit: Callable[[str, Load], Awaitable[None]]
    """Submits a load; the names of its jobs begin with the given prefix."""

    def check(self) -> None:
        """See that every service still runs.

        Raises:
            ContenderFailedError: One does not.
        """
        for service in self.services:
            service.check()


def job_names(prefix: str, load: Load) -> list[str]:
    """The jobs of a load; all their names sort and match under the prefix."""
    return [f"{prefix}-{index}" for index in range(load.jobs)]


@asynccontextmanager
async def channel(url: str) -> AsyncIterator[AbstractChannel]:
    """A confirming channel of the benchmark's own, to submit with and to clean up."""
    connection = await aio_pika.connect(url)
    async with connection:
        yield await connection.channel(publisher_confirms=True, on_return_raises=True)


async def delete_queues(url: str, names: tuple[str, ...]) -> None:
    """Remove the queues of a contender."""
    async with channel(url) as opened:
        for name in names:
            await opened.queue_delete(name)


async def wait_for_consumers(url: str, names: tuple[str, ...], services: Sequence[Service]) -> None:
    """Return once every queue has a consumer; the queues are made where they are missing.

    Raises:
        ContenderFailedError: A service ended, or a queue still has none after ``READY_TIMEOUT_S``.
    """
    async with channel(url) as opened:
        for name in names:
            until = time.monotonic() + READY_TIMEOUT_S
            while True:
                queue = await opened.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
                if queue.declaration_result.consumer_count:
                    break
                for service in services:
                    service.check()
                if time.monotonic() > until:
                    tails = "\n".join(f"{service.name}: {service.tail()}" for service in services)
                    raise ContenderFailedError(f"nobody consumes {name}\n{tails}")
                await asyncio.sleep(0.1)
