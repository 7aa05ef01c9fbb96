"""A PostgreSQL server for the test session, and a database of its own for each test."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
from sqlalchemy.engine import make_url

from parallax.db.embedded import embedded_postgres
from tests.harness.proxy import Proxy, proxying

FAST_AND_UNSAFE = ("fsync = off", "synchronous_commit = off", "full_page_writes = off", "autovacuum = off")
"""What a test database may do without: it need not survive a power cut, nor live long."""


@contextmanager
def postgres_server(folder: Path) -> Iterator[str]:
    """The URL of a server: the one in ``PARALLAX_TEST_DATABASE_URL``, or an embedded one in ``folder``."""
    given = os.environ.get("PARALLAX_TEST_DATABASE_URL")
    if given:
        yield given
        return
    with embedded_postgres(folder) as url:
        yield url


async def make_fast(url: str) -> None:
    """Trade durability for speed on a server that only tests use."""
    connection = await asyncpg.connect(url)
    try:
        for setting in FAST_AND_UNSAFE:
            await connection.execute(f"ALTER SYSTEM SET {setting}")
        await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close()


async def create_database(server_url: str, name: str, *, template: str | None = None) -> str:
    """Create a database and return its URL."""
    connection = await asyncpg.connect(server_url)
    try:
        source = f' TEMPLATE "{template}"' if template else ""
        await connection.execute(f'CREATE DATABASE "{name}"{source}')
    finally:
        await connection.close()
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


async def drop_database(server_url: str, name: str) -> None:
    """Drop a database, whoever is connected to it."""
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    finally:
        await connection.close()


async def execute(url: str, *statements: str, read_only: bool | None = None) -> None:
    """Run statements on a connection of their own, which may be told to ignore the database's default."""
    given = {} if read_only is None else {"default_transaction_read_only": "on" if read_only else "off"}
    connection = await asyncpg.connect(url, server_settings=given)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@asynccontextmanager
async def through_tcp(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy in front of the server, and the URL through it; the embedded server itself listens on no TCP port."""
    parts = urlsplit(url)
    folder = parse_qs(parts.query).get("host", [""])[0]

    async def dial() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if folder:
            return await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.5432")
        return await asyncio.open_connection(parts.hostname, parts.port or 5432)

    async with proxying(dial) as proxy:
        credentials = parts.netloc.rpartition("@")[0]
        yield proxy, f"postgresql://{credentials}@127.0.0.1:{proxy.port}{parts.path}"
