"""Where a contender's committed rows are read back: counted while it runs, and with their times afterwards."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from tests.benchmarks.compare.figures import Row

POLL_EVERY_S: Final = 0.1
"""How often the end of a run is looked for; durations come from the rows, not from when they were seen."""

BARE_TABLE: Final = """
CREATE TABLE executions (
    job_id         text NOT NULL,
    question_index integer NOT NULL,
    cell           integer NOT NULL,
    region         text NOT NULL,
    started_at     timestamptz NOT NULL,
    completed_at   timestamptz NOT NULL,
    recorded_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    fact           text NOT NULL,
    PRIMARY KEY (job_id, question_index, cell)
)
"""
"""The ledger of the floor and of Celery: as many bytes and the same key, without Parallax's columns and indexes."""


class StalledError(Exception):
    """A run did not end in time."""


class Ledger:
    """Reads the rows of one contender's table, by the prefix of its jobs' names."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]", table: str) -> None:
        self._connection = connection
        self._table = table

    async def create(self) -> None:
        """Make the bare table; Parallax makes its own."""
        await self._connection.execute(BARE_TABLE)

    async def count(self, prefix: str) -> int:
        """How many executions were recorded."""
        sql = f"SELECT count(*) FROM {self._table} WHERE starts_with(job_id, $1)"
        return int(await self._connection.fetchval(sql, prefix))

    async def rows(self, prefix: str) -> list[Row]:
        """Every recorded execution."""
        sql = (
            "SELECT job_id, question_index, extract(epoch FROM started_at)::float8,"
            " extract(epoch FROM completed_at)::float8, extract(epoch FROM recorded_at)::float8"
            f" FROM {self._table} WHERE starts_with(job_id, $1)"
        )
        return [Row(*record) for record in await self._connection.fetch(sql, prefix)]

    async def wait(
        self,
        prefix: str,
        executions: int,
        *,
        timeout_s: float,
        every_s: float = POLL_EVERY_S,
        seen: Callable[[int], None] = lambda _count: None,
    ) -> None:
        """Return once that many executions are recorded; ``seen`` gets every count on the way.

        Raises:
            StalledError: They were not recorded in time.
        """
        count = 0
        try:
            async with asyncio.timeout(timeout_s):
                while (count := await self.count(prefix)) < executions:
                    seen(count)
                    await asyncio.sleep(every_s)
        except TimeoutError as error:
            raise StalledError(f"{count} of {executions} executions recorded after {timeout_s:.0f} s") from error
        seen(count)


@asynccontextmanager
async def ledger(database_url: str, table: str) -> AsyncIterator[Ledger]:
    """A reader with a connection of its own."""
    connection = await asyncpg.connect(database_url)
    try:
        yield Ledger(connection, table)
    finally:
        await connection.close()
