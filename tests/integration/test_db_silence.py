"""A database that refuses, stalls, or vanishes without a word: every transaction ends in time and says so."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.db.engine import USER_TIMEOUT_MS, Limits, autocommit, create_engine, ping, transaction
from parallax.errors import UnavailableError
from tests.harness.postgres import execute, through_tcp
from tests.harness.proxy import Proxy

QUICK = Limits(lock_s=0.3, statement_s=0.5, command_s=1.0, idle_transaction_s=20)


@asynccontextmanager
async def engine_on(url: str, pool_size: int = 2) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(url, application_name="test", pool_size=pool_size, limits=QUICK)
    try:
        yield engine
    finally:
        await engine.dispose()


@pytest.fixture
async def wire(database_url: str) -> AsyncIterator[tuple[Proxy, str]]:
    async with through_tcp(database_url) as proxied:
        yield proxied


async def one(engine: AsyncEngine) -> None:
    async with transaction(engine) as connection:
        await connection.execute(text("SELECT 1"))


async def one_at_once(engine: AsyncEngine) -> None:
    async with autocommit(engine) as connection:
        await connection.execute(text("SELECT 1"))


@pytest.mark.parametrize("work", [one, one_at_once, ping])
async def test_a_silent_database_is_given_up_and_left_behind(
    wire: tuple[Proxy, str], work: Callable[[AsyncEngine], Awaitable[None]]
) -> None:
    proxy, url = wire
    async with engine_on(url) as engine:
        await work(engine)
        proxy.silence()
        async with asyncio.timeout(20):
            with pytest.raises(UnavailableError):
                await work(engine)
        proxy.speak()
        async with asyncio.timeout(20):
            await work(engine)


async def test_a_half_open_connection_among_several_costs_one_try(database_url: str) -> None:
    async with engine_on(database_url, pool_size=3) as engine:
        async with transaction(engine), transaction(engine) as last, transaction(engine):
            driver = (await last.get_raw_connection()).driver_connection
            assert driver is not None
        driver._transport.pause_reading()  # its answers never arrive
        refused = 0
        async with asyncio.timeout(20):
            for _ in range(4):
                try:
                    await asyncio.gather(one(engine), one(engine), one(engine))
                except UnavailableError:
                    refused += 1
        assert refused == 1
        assert driver.is_closed()


async def test_a_task_that_is_cancelled_in_a_silent_statement_ends(wire: tuple[Proxy, str]) -> None:
    proxy, url = wire
    async with engine_on(url) as engine:
        await one(engine)
        proxy.silence()
        waiting = asyncio.create_task(one(engine))
        await asyncio.sleep(0.2)
        waiting.cancel()
        done, _ = await asyncio.wait((waiting,), timeout=0.7)
        assert done, "it does not wait for an answer to its cancellation"
        proxy.cut()
        proxy.speak()


async def test_a_silent_server_that_is_dialled_is_given_up(wire: tuple[Proxy, str]) -> None:
    proxy, url = wire
    proxy.silence()
    async with engine_on(url) as engine, asyncio.timeout(20):
        with pytest.raises(UnavailableError):
            await one(engine)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the platform has no such option")
async def test_the_kernel_watches_connections_over_tcp(wire: tuple[Proxy, str], database_url: str) -> None:
    _, url = wire
    async with engine_on(url) as engine, transaction(engine) as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        wired = driver._transport.get_extra_info("socket")
        assert wired.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert wired.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == USER_TIMEOUT_MS
    async with engine_on(database_url) as engine:
        await one(engine)


async def test_a_statement_that_takes_too_long_is_unavailable(database_url: str) -> None:
    async with engine_on(database_url) as engine:
        with pytest.raises(UnavailableError, match="statement timeout"):
            async with transaction(engine) as connection:
                await connection.execute(text("SELECT pg_sleep(30)"))


async def test_a_lock_that_somebody_keeps_is_unavailable(database_url: str) -> None:
    async with engine_on(database_url) as engine, transaction(engine) as holder:
        await holder.execute(text("SELECT pg_advisory_xact_lock(1)"))
        with pytest.raises(UnavailableError, match="lock timeout"):
            async with transaction(engine) as connection:
                await connection.execute(text("SELECT pg_advisory_xact_lock(1)"))


async def test_a_read_only_server_is_left_for_the_next_one(database_url: str) -> None:
    name = urlsplit(database_url).path.removeprefix("/")
    await execute(database_url, "CREATE TABLE things (id integer)")
    await execute(database_url, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    async with engine_on(database_url) as engine:
        for _ in range(2):
            with pytest.raises(UnavailableError, match="read-only"):
                await insert(engine)
        # A connection keeps what it was opened with: only a new one sees the new primary.
        await execute(database_url, f'ALTER DATABASE "{name}" RESET default_transaction_read_only', read_only=False)
        await insert(engine)


async def insert(engine: AsyncEngine) -> None:
    async with autocommit(engine) as connection:
        await connection.execute(text("INSERT INTO things VALUES (1)"))


async def test_a_role_that_may_not_connect_is_waited_for(database_url: str, postgres_url: str) -> None:
    role = f"narrow_{urlsplit(database_url).path[-8:]}"
    await execute(database_url, f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 0")
    (folder,) = parse_qs(urlsplit(postgres_url).query)["host"] if "host=" in postgres_url else ("",)
    if not folder:
        pytest.skip("the server is not the embedded one, which lets every role in")
    url = database_url.replace("//postgres@", f"//{role}@")
    try:
        async with engine_on(url) as engine:
            with pytest.raises(UnavailableError, match="too many connections"):
                await one(engine)
            await execute(database_url, f"ALTER ROLE {role} NOLOGIN CONNECTION LIMIT -1")
            with pytest.raises(UnavailableError, match="not permitted to log in"):
                await one(engine)
            await execute(database_url, f"ALTER ROLE {role} LOGIN")
            await one(engine)
    finally:
        await execute(database_url, f"DROP ROLE {role}")


async def test_a_database_that_does_not_exist_is_waited_for(database_url: str) -> None:
    async with engine_on(database_url.replace("/test_", "/missing_")) as engine:
        with pytest.raises(UnavailableError, match="does not exist"):
            await one(engine)


async def test_a_backend_that_an_administrator_ends_is_replaced(database_url: str) -> None:
    other = await asyncpg.connect(database_url)
    try:
        async with engine_on(database_url) as engine:
            with pytest.raises(UnavailableError):
                await ended_by(other, engine)
            await one(engine)
    finally:
        await other.close()


async def ended_by(administrator: Any, engine: AsyncEngine) -> None:
    async with transaction(engine) as connection:
        backend = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        await administrator.execute("SELECT pg_terminate_backend($1, 10000)", backend)
        await connection.execute(text("SELECT 1"))
