"""Servers that tests share, and what isolates one test from another."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest

from tests.harness import postgres, rabbitmq


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The session's PostgreSQL server.

    Not below pytest's own folder: another session that starts meanwhile closes that to all but its owner, and a
    server that root starts runs as somebody else.
    """
    with (
        TemporaryDirectory(prefix="parallax-postgres-", ignore_cleanup_errors=True) as folder,
        postgres.postgres_server(Path(folder) / "data") as url,
    ):
        asyncio.run(postgres.make_fast(url))
        yield url


@pytest.fixture
async def database_url(postgres_url: str) -> AsyncIterator[str]:
    """An empty database that only this test uses."""
    name = f"test_{uuid4().hex}"
    yield await postgres.create_database(postgres_url, name)
    await postgres.drop_database(postgres_url, name)


@pytest.fixture(scope="session")
def rabbitmq_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rabbitmq.Node]:
    """The session's RabbitMQ node, for tests that stop, kill or cut it; they leave it running."""
    with rabbitmq.rabbitmq_node(tmp_path_factory.mktemp("rabbitmq")) as node:
        yield node


@pytest.fixture(scope="session")
def amqp_url(rabbitmq_node: rabbitmq.Node) -> str:
    """The session's RabbitMQ broker."""
    return rabbitmq_node.url


@pytest.fixture
async def namespace(amqp_url: str) -> AsyncIterator[str]:
    """The name of an installation that only this test uses on the broker; its queues are removed afterwards."""
    name = f"test-{uuid4().hex[:12]}"
    yield name
    await rabbitmq.delete_namespace(amqp_url, name)
