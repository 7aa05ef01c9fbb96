"""A broker that is away or says nothing: it is noticed in time, everything ends in time, and stopped means stopped."""

import asyncio
from collections.abc import Awaitable

import aiormq
import pytest

from parallax.bus.amqp import AmqpBus
from parallax.bus.amqp.connection import CLOSE_TIMEOUT_S
from parallax.bus.amqp.publisher import MAX_BODY_BYTES
from parallax.bus.port import Delivery
from parallax.contracts import routing
from parallax.contracts.messages import CancelJob
from parallax.errors import UnavailableError, UnconfirmedError
from tests.integration.amqp_stage import QUEUE, WAIT_S, connected, connected_through, eventually

pytestmark = pytest.mark.rabbitmq

NOTICED_S = 15.0
"""Within this a silent broker must have been noticed."""
SLACK_S = 3.0
"""For a busy machine."""
LOOKS = 30
"""At the number of consumers, 50 ms apart: far longer than the pause before a consumer attaches again."""


async def consumers(url: str, name: str) -> int | None:
    """How many consumers the broker has on a queue."""
    connection = await aiormq.connect(url)
    answer = await (await connection.channel()).queue_declare(name, passive=True)
    await connection.close()
    return answer.consumer_count


async def seconds(what: Awaitable[object]) -> float:
    """How long something takes."""
    loop = asyncio.get_running_loop()
    before = loop.time()
    await what
    return loop.time() - before


@pytest.mark.parametrize("end", ["stop", "close"])
async def test_a_consumer_that_is_stopped_while_the_broker_is_away_never_attaches_again(
    amqp_url: str, namespace: str, end: str
) -> None:
    first: list[Delivery] = []
    async with connected(amqp_url, namespace) as other, connected_through(amqp_url, namespace) as (bus, between):
        stopping = await bus.consume(QUEUE, prefetch=10, handler=first.append)
        remaining = await bus.consume(routing.FACTS, prefetch=10, handler=lambda _: None)
        between.refuse()
        await eventually(lambda: not stopping.live and not remaining.live)
        await (stopping.stop() if end == "stop" else stopping.close())
        await other.publish(*(CancelJob(job_id=f"job-{n}") for n in range(3)))
        between.admit()
        await eventually(lambda: remaining.live)
        for _ in range(LOOKS):
            assert await consumers(amqp_url, f"{namespace}.{QUEUE.name}") == 0
            await asyncio.sleep(0.05)
        assert not stopping.live
        await stopping.close()
        second: list[Delivery] = []
        await other.consume(QUEUE, prefetch=10, handler=second.append)
        await eventually(lambda: len(second) == 3)
        assert [delivery.delivery_count for delivery in second] == [0, 0, 0]
        assert first == []
        assert await other.depth(routing.DEAD_LETTERS) == 0


async def is_lost(bus: AmqpBus) -> None:
    """Wait until both connections were noticed to be lost."""
    await eventually(lambda: not bus.live)


@pytest.mark.slow
async def test_a_broker_that_falls_silent_is_noticed_and_waited_for(amqp_url: str, namespace: str) -> None:
    held: list[Delivery] = []
    async with connected_through(amqp_url, namespace, publish_timeout_s=2.0) as (bus, between):
        consumption = await bus.consume(QUEUE, prefetch=10, handler=held.append)
        between.silence()
        with pytest.raises(UnavailableError):
            assert await seconds(bus.publish(CancelJob(job_id="job-1"))) < 2.0 + SLACK_S
        assert await seconds(eventually(lambda: not consumption.live)) < NOTICED_S + SLACK_S
        with pytest.raises(UnavailableError):
            assert await seconds(bus.publish(CancelJob(job_id="job-2"))) < 2.0 + SLACK_S
        between.cut()
        between.speak()
        await eventually(lambda: consumption.live and bus.publishable)
        await bus.publish(CancelJob(job_id="job-3"))
        await eventually(lambda: len(held) == 1)


@pytest.mark.parametrize("noticed", [False, True])
async def test_a_client_closes_in_spite_of_a_silent_broker(amqp_url: str, namespace: str, *, noticed: bool) -> None:
    async with connected_through(amqp_url, namespace, publish_timeout_s=1.0) as (bus, between):
        await bus.consume(QUEUE, prefetch=10, handler=lambda _: None)
        await bus.follow(routing.CANCELLATIONS, lambda _: None)
        between.silence()
        with pytest.raises(UnavailableError):
            await bus.publish(CancelJob(job_id="job-1"))
        if noticed:
            await is_lost(bus)
        async with asyncio.timeout(WAIT_S):
            assert await seconds(bus.close()) < 3 * CLOSE_TIMEOUT_S + SLACK_S


async def test_closing_drops_what_a_silent_broker_does_not_take(amqp_url: str, namespace: str) -> None:
    """More than the sockets on the way hold, so that an orderly end of the connection would wait for ever."""
    async with connected_through(amqp_url, namespace) as (bus, between):
        await bus.publish(CancelJob(job_id="job-1"))
        assert bus._publishing._current is not None
        writer = bus._publishing._current._transport.writer
        assert writer is not None
        between.silence()
        publishing = asyncio.create_task(bus.publish_raw(QUEUE, b"x" * MAX_BODY_BYTES))
        await eventually(lambda: writer.transport.get_write_buffer_size() > 0)
        assert await seconds(bus.close()) < CLOSE_TIMEOUT_S + SLACK_S
        assert writer.transport.get_write_buffer_size() == 0
        with pytest.raises(UnconfirmedError):
            await publishing
