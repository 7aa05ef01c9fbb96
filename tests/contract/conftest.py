"""Installations of every bus, for the suites that all of them must pass."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from yarl import URL

from parallax.bus.port import Bus
from tests.contract.buses import AmqpInstallation, Installation, MemoryInstallation
from tests.harness.proxy import proxy
from tests.harness.rabbitmq import delete_namespace


@pytest.fixture(params=["memory", pytest.param("amqp", marks=pytest.mark.rabbitmq)])
async def installation(request: pytest.FixtureRequest) -> AsyncIterator[Installation]:
    """An empty installation on the memory bus and on RabbitMQ."""
    if request.param == "memory":
        memory = MemoryInstallation()
        yield memory
        await memory.close()
        return
    url, namespace = str(request.getfixturevalue("amqp_url")), f"test-{uuid4().hex[:12]}"
    server = URL(url)
    assert server.host is not None
    async with proxy(server.host, server.port or 5672) as between:
        real = AmqpInstallation(url, namespace, between)
        yield real
        await real.close()
    await delete_namespace(url, namespace)


@pytest.fixture
async def bus(installation: Installation) -> Bus:
    """A client of the installation."""
    return await installation.client()
