"""Publishing while the broker reads nothing: what is given up is never delivered, and callers learn what is known."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import REGISTRY

from parallax.bus.amqp import AmqpBus
from parallax.bus.amqp.confirm_batch import OutgoingMessage
from parallax.bus.amqp.publisher import BATCH
from parallax.bus.port import Delivery
from parallax.contracts import routing
from parallax.contracts.messages import CancelJob, decode, encode
from parallax.errors import UnavailableError, UnconfirmedError
from tests.harness.proxy import Proxy
from tests.harness.rabbitmq import Node
from tests.integration.amqp_stage import QUEUE, WAIT_S, cancelled, connected, connected_through, eventually

pytestmark = pytest.mark.rabbitmq

QUICK_S = 1.0
"""A publish timeout for brokers that will not answer."""


@asynccontextmanager
async def alarm(node: Node) -> AsyncIterator[None]:
    """The broker is out of memory while the block runs."""
    await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0")
    try:
        yield
    finally:
        await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "absolute", "2GB")


async def received(bus: AmqpBus) -> Counter[str]:
    """How many copies of each message the queue has; nothing else is published while this counts."""
    await eventually(lambda: bus.publishable)
    await bus.publish(CancelJob(job_id="the-last"))
    held: list[Delivery] = []
    consumption = await bus.consume(QUEUE, prefetch=2000, handler=held.append)
    count = await bus.depth(QUEUE)
    await eventually(lambda: len(held) >= count and any(job_of(each) == "the-last" for each in held))
    await consumption.close()
    found = Counter(map(job_of, held))
    del found["the-last"]
    return found


def job_of(delivery: Delivery) -> str:
    """The job a message is about."""
    message = decode(delivery.body)
    assert isinstance(message, CancelJob)
    return message.job_id


def lose(between: Proxy) -> None:
    """End a silence by losing what was held back, and the connections with it."""
    between.cut()
    between.speak()


async def blocked(bus: AmqpBus) -> None:
    """Publish into the alarm, which is how a client learns of it."""
    with pytest.raises(UnconfirmedError, match="not confirmed within"):
        await bus.publish(CancelJob(job_id="the-first"))
    await eventually(lambda: bus.blocked)


@pytest.mark.parametrize(("count", "size_bytes"), [(1, 200), (20, 100_000)], ids=["small", "large"])
async def test_what_was_given_up_under_an_alarm_is_never_delivered(
    rabbitmq_node: Node, amqp_url: str, namespace: str, count: int, size_bytes: int
) -> None:
    """The caller repeats whatever is refused, as one that knows nothing of the contract would."""
    bodies = [encode(CancelJob(job_id=f"job-{n}")).ljust(size_bytes) for n in range(count)]
    messages = [OutgoingMessage(namespace, QUEUE.keys[0], body) for body in bodies]
    async with connected(amqp_url, namespace, publish_timeout_s=QUICK_S) as bus:
        await bus.publish(CancelJob(job_id="before"))
        confirmed = Counter(["before"])
        async with alarm(rabbitmq_node):
            for _ in range(4):
                try:
                    await bus._publisher.send(*messages)
                    confirmed.update(f"job-{n}" for n in range(count))
                except UnavailableError:
                    await asyncio.sleep(0.1)
        assert await received(bus) == confirmed


async def test_a_caller_that_follows_the_contract_has_one_copy_of_each(
    rabbitmq_node: Node, amqp_url: str, namespace: str
) -> None:
    async with connected(amqp_url, namespace, publish_timeout_s=QUICK_S) as bus:
        done: set[str] = set()
        unknown: set[str] = set()
        refused = asyncio.Event()

        async def publish(job_id: str) -> None:
            async with asyncio.timeout(WAIT_S):
                while job_id not in done | unknown:
                    try:
                        await bus.publish(CancelJob(job_id=job_id))
                        done.add(job_id)
                    except UnconfirmedError:
                        unknown.add(job_id)
                    except UnavailableError:
                        refused.set()
                        await asyncio.sleep(0.05)

        async with alarm(rabbitmq_node):
            await publish("unlucky")
            publishing = [asyncio.create_task(publish(f"job-{n}")) for n in range(20)]
            await refused.wait()
        await asyncio.gather(*publishing)
        assert unknown == {"unlucky"}, "only the one that told us of the alarm"
        assert await received(bus) == Counter(done)


async def test_a_blocked_broker_stops_publishing_at_once_and_shows(
    rabbitmq_node: Node, amqp_url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    caplog.set_level("INFO", "parallax")

    def gauge() -> float | None:
        return REGISTRY.get_sample_value("parallax_bus_blocked", {"connection": "recovery publish"})

    async with connected(amqp_url, namespace, publish_timeout_s=5.0) as bus:
        assert (bus.publishable, bus.blocked, gauge()) == (True, False, 0.0)
        async with alarm(rabbitmq_node):
            await blocked(bus)
            assert (bus.publishable, bus.blocked, gauge()) == (False, True, 1.0)
            assert "blocks publishing" in caplog.text
            held: list[Delivery] = []
            await bus.consume(QUEUE, prefetch=1, handler=held.append)
            before = loop.time()
            for _ in range(20):
                with pytest.raises(UnavailableError, match="blocks publishing") as refused:
                    await bus.publish(CancelJob(job_id="job-1"))
                assert not isinstance(refused.value, UnconfirmedError)
            assert loop.time() - before < 5.0, "nobody waits for what cannot be"
        await eventually(lambda: bus.publishable)
        assert (bus.blocked, gauge()) == (False, 0.0)
        assert "accepts publishing" in caplog.text
        await bus.publish(CancelJob(job_id="job-2"))
        await eventually(lambda: [job_of(each) for each in held] == ["job-2"])


async def test_answers_and_dead_letters_are_refused_likewise(
    rabbitmq_node: Node, amqp_url: str, namespace: str
) -> None:
    async with connected(amqp_url, namespace, publish_timeout_s=QUICK_S) as bus:
        held: list[Delivery] = []
        await bus.consume(QUEUE, prefetch=1, handler=held.append)
        await bus.publish_raw(QUEUE, b"{}", reply_to="somebody")
        await eventually(lambda: len(held) == 1)
        async with alarm(rabbitmq_node):
            await blocked(bus)
            with pytest.raises(UnavailableError, match="blocks publishing"):
                await bus.reply(held[0], cancelled("job-1"))
            with pytest.raises(UnavailableError, match="blocks publishing"):
                await held[0].reject("unreadable")
        await eventually(lambda: bus.publishable)
        await held[0].reject("unreadable")
        assert await bus.depth(routing.DEAD_LETTERS) == 1


async def test_a_client_may_come_during_an_alarm(rabbitmq_node: Node, amqp_url: str, namespace: str) -> None:
    async with alarm(rabbitmq_node), connected(amqp_url, namespace) as bus:
        assert bus.blocked
        assert bus.live
        consumption = await bus.consume(QUEUE, prefetch=1, handler=lambda _: None)
        assert consumption.live
        with pytest.raises(UnavailableError, match="blocks publishing"):
            await bus.publish(CancelJob(job_id="job-1"))


async def test_a_publish_whose_caller_left_leaves_nothing_behind_either(
    rabbitmq_node: Node, amqp_url: str, namespace: str
) -> None:
    async with connected(amqp_url, namespace, publish_timeout_s=QUICK_S) as bus:
        async with alarm(rabbitmq_node):
            publishing = asyncio.create_task(bus.publish(CancelJob(job_id="job-1")))
            await eventually(lambda: bus.blocked)
            publishing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await publishing
            attempt = bus._publishing._state.attempt
            await eventually(lambda: bus._publishing._state.attempt > attempt and bus.blocked)
        assert await received(bus) == Counter()


async def test_a_publish_that_was_cut_off_is_unconfirmed(amqp_url: str, namespace: str) -> None:
    async with connected_through(amqp_url, namespace) as (bus, between):
        await bus.publish(CancelJob(job_id="job-0"))
        between.silence()
        publishing = asyncio.create_task(bus.publish(CancelJob(job_id="job-1")))
        await eventually(lambda: bus._publisher._channel is not None and bool(bus._publisher._channel.confirmations))
        lose(between)
        with pytest.raises(UnconfirmedError):
            await publishing
        assert await received(bus) == Counter(["job-0"])


async def test_a_group_that_was_half_confirmed_is_unconfirmed(amqp_url: str, namespace: str) -> None:
    """The broker falls silent when it has confirmed the first batch."""
    async with connected_through(amqp_url, namespace, publish_timeout_s=QUICK_S) as (bus, between):
        connection = bus._publishing

        def check() -> None:
            channel = bus._publisher._channel
            if channel is not None and channel.delivery_tag == BATCH:
                between.silence()

        connection.check = check  # type: ignore[method-assign]
        with pytest.raises(UnconfirmedError):
            await bus.publish(*(CancelJob(job_id=f"job-{n}") for n in range(2 * BATCH)))
        del connection.check
        lose(between)
        assert await received(bus) == Counter(f"job-{n}" for n in range(BATCH))
