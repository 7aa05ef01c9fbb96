"""A results database for tests, and what they ask of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Self

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.bus.memory import MemoryBroker, MemoryBus
from parallax.bus.port import Delivery
from parallax.contracts.messages import Message, decode
from parallax.contracts.routing import Queue
from parallax.db.engine import create_engine
from parallax.db.migrations import migrate

PATIENCE_S: Final = 30.0
"""How long a test waits for what must happen; only a failing one waits that long."""


@asynccontextmanager
async def results_engine(url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on a database with the schema of results."""
    engine = create_engine(url, application_name="test", pool_size=10)
    await migrate(engine, package="results", schema="results")
    yield engine
    await engine.dispose()


async def rows(engine: AsyncEngine, sql: str, **parameters: Any) -> list[dict[str, Any]]:
    """The rows of a query."""
    async with engine.connect() as connection:
        return [dict(row) for row in (await connection.execute(text(sql), parameters)).mappings()]


async def row(engine: AsyncEngine, sql: str, **parameters: Any) -> dict[str, Any]:
    """The only row of a query."""
    (only,) = await rows(engine, sql, **parameters)
    return only


async def blocked(engine: AsyncEngine, count: int) -> None:
    """Wait until ``count`` sessions of this database wait for a lock."""

    waiting = """
        SELECT count(*) AS n FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'"""

    async def all_wait() -> bool:
        return bool((await row(engine, waiting))["n"] == count)

    await eventually(all_wait)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something that gives no signal has come true."""
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 - other processes set no event
            await asyncio.sleep(0.01)


class Inbox:
    """Everything that arrives in a queue of the memory bus, in order; nothing is settled."""

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[Delivery] = asyncio.Queue()

    @classmethod
    async def of(cls, broker: MemoryBroker, queue: Queue) -> Self:
        """An inbox of a queue."""
        inbox = cls()
        await MemoryBus(broker).consume(queue, prefetch=10_000, handler=inbox._arrived.put_nowait)
        return inbox

    async def next_delivery(self) -> Delivery:
        """The next arrival."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._arrived.get()

    async def next(self) -> Message:
        """The next message."""
        return decode((await self.next_delivery()).body)

    @property
    def empty(self) -> bool:
        """Whether nothing more has arrived so far."""
        return self._arrived.empty()
