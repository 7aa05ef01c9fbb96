"""Clients of a real broker, and what they send in tests."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from yarl import URL

from parallax.bus import amqp
from parallax.bus.amqp import AmqpBus
from parallax.contracts import routing
from parallax.contracts.heartbeat import ExecutorHeartbeat
from parallax.contracts.messages import JobCancelled
from parallax.contracts.outcomes import Reason
from tests.harness.proxy import Proxy, proxy
from tests.harness.rabbitmq import REGIONS

QUEUE = routing.PROGRESS
WAIT_S = 90.0
"""A node boots in 6 s on an idle machine, and several times that on a busy one."""


@asynccontextmanager
async def connected(url: str, namespace: str, *, publish_timeout_s: float = 10.0) -> AsyncIterator[AmqpBus]:
    """A client of the installation."""
    bus = await amqp.connect(
        url, namespace=namespace, regions=REGIONS, name="recovery", publish_timeout_s=publish_timeout_s
    )
    try:
        yield bus
    finally:
        await bus.close()


@asynccontextmanager
async def connected_through(
    url: str, namespace: str, *, publish_timeout_s: float = 10.0
) -> AsyncIterator[tuple[AmqpBus, Proxy]]:
    """A client of the installation behind a proxy, which can lose, refuse or silence its connections."""
    server = URL(url)
    assert server.host is not None
    async with proxy(server.host, server.port or 5672) as between:
        far = str(server.with_host("127.0.0.1").with_port(between.port))
        async with connected(far, namespace, publish_timeout_s=publish_timeout_s) as bus:
            yield bus, between


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what nothing announces."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.02)


def heartbeat() -> ExecutorHeartbeat:
    """A sign of life."""
    now = datetime.now(UTC)
    return ExecutorHeartbeat(
        executor_id="executor-1",
        region="us",
        budget=1,
        running=(),
        models=(),
        endpoint_state="ready",
        started_at=now,
        sent_at=now,
    )


def cancelled(job_id: str) -> JobCancelled:
    """An entry of the cancellation stream."""
    reason = Reason(code="cancelled", message="by the test")
    return JobCancelled(job_id=job_id, reason=reason, cancelled_at=datetime.now(UTC))
