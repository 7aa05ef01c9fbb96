"""Servers that tests share, and what isolates one test from another."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest

from tests.harness import postgres


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The session's PostgreSQL server."""
    with postgres.postgres_server(tmp_path_factory.mktemp("postgres") / "data") as url:
        asyncio.run(postgres.make_fast(url))
        yield url


@pytest.fixture
async def database_url(postgres_url: str) -> AsyncIterator[str]:
    """An empty database that only this test uses."""
    name = f"test_{uuid4().hex}"
    yield await postgres.create_database(postgres_url, name)
    await postgres.drop_database(postgres_url, name)
