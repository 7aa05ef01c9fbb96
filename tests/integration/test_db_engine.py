"""What the pool of database connections does when the server closes one of them."""

import asyncio
from typing import Any

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.db.engine import create_engine, transaction

BACKEND = text("SELECT pg_backend_pid()")


async def backend(engine: AsyncEngine) -> tuple[int, Any]:
    """The server's process of the connection that the pool gives, and the driver's side of it."""
    async with transaction(engine) as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        return int((await connection.execute(BACKEND)).scalar_one()), driver


async def test_a_connection_that_the_server_closed_is_replaced_before_anybody_gets_it(database_url: str) -> None:
    engine = create_engine(database_url, application_name="test")
    other = await asyncpg.connect(database_url)
    closed = asyncio.Event()
    try:
        lost, driver = await backend(engine)
        driver.add_termination_listener(lambda _: closed.set())
        await other.execute("SELECT pg_terminate_backend($1)", lost)
        await asyncio.wait_for(closed.wait(), 30)
        assert (await backend(engine))[0] != lost
    finally:
        await other.close()
        await engine.dispose()


async def test_the_connection_used_last_is_used_next(database_url: str) -> None:
    engine = create_engine(database_url, application_name="test")
    try:
        async with transaction(engine) as first, transaction(engine) as second:
            opened = [(await each.execute(BACKEND)).scalar_one() for each in (first, second)]
        assert [(await backend(engine))[0] for _ in range(3)] == [opened[0]] * 3
    finally:
        await engine.dispose()
