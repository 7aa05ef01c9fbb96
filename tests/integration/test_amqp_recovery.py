"""The bus on RabbitMQ under everything that happens to brokers and networks: nothing is lost, and it comes back."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import aiormq
import pytest
from yarl import URL

from parallax.bus.amqp import AmqpBus
from parallax.bus.amqp.confirm_batch import OutgoingMessage
from parallax.bus.amqp.queue_consumer import QueueConsumer
from parallax.bus.port import Delivery
from parallax.contracts import routing
from parallax.contracts.messages import CancelJob, JobCancelled, decode
from parallax.errors import StaleDeliveryError, UnavailableError
from tests.harness.proxy import proxy
from tests.harness.rabbitmq import Node
from tests.integration.amqp_stage import QUEUE, WAIT_S, cancelled, connected, eventually

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
async def bus(amqp_url: str, namespace: str) -> AsyncIterator[AmqpBus]:
    """A client of the installation."""
    async with connected(amqp_url, namespace) as made:
        yield made


async def ctl(node: Node, *arguments: str) -> str:
    """Run rabbitmqctl without stopping the event loop."""
    return await asyncio.to_thread(node.ctl, *arguments)


async def insist(bus: AmqpBus, message: CancelJob | JobCancelled) -> None:
    """Publish as services do: again, until it is confirmed."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await bus.publish(message)
            except UnavailableError:
                await asyncio.sleep(0.05)
            else:
                return


class Load:
    """Messages published and consumed all the time, each with its number."""

    def __init__(self, bus: AmqpBus) -> None:
        self._bus = bus
        self._stopping = False
        self._publishers: list[asyncio.Task[None]] = []
        self._acks: set[asyncio.Task[None]] = set()
        self.confirmed: set[str] = set()
        self.received: Counter[str] = Counter()

    async def __aenter__(self) -> "Load":
        self.consumption = await self._bus.consume(QUEUE, prefetch=50, handler=self._take)
        self._publishers = [asyncio.create_task(self._publish(n)) for n in range(8)]
        await self.advance()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._publishers)
        await self.consumption.close()
        await asyncio.gather(*self._acks)

    async def advance(self) -> None:
        """Wait until messages published from now on arrive."""
        before = len(self.received)
        await eventually(lambda: len(self.received) > before + 100 and self.consumption.live)

    async def finish(self) -> None:
        """Publish no more and wait until all that was confirmed has arrived."""
        self._stopping = True
        await asyncio.gather(*self._publishers)
        await eventually(lambda: self.confirmed <= self.received.keys())

    async def _publish(self, lane: int) -> None:
        number = 0
        while not self._stopping:
            number += 1
            job_id = f"job-{lane}-{number}"
            await insist(self._bus, CancelJob(job_id=job_id))
            self.confirmed.add(job_id)

    def _take(self, delivery: Delivery) -> None:
        message = decode(delivery.body)
        assert isinstance(message, CancelJob)
        self.received[message.job_id] += 1
        ack = asyncio.create_task(self._ack(delivery))
        self._acks.add(ack)
        ack.add_done_callback(self._acks.discard)

    @staticmethod
    async def _ack(delivery: Delivery) -> None:
        try:
            await delivery.ack()
        except StaleDeliveryError:
            return


async def close_connections(node: Node, bus: AmqpBus) -> None:
    """The operator closes every connection."""
    del bus
    await ctl(node, "close_all_connections", "by the test")


async def close_consumer_channel(node: Node, bus: AmqpBus) -> None:
    """The broker closes the consumer's channel, because of an ack for something it never delivered."""
    del node
    (consumption,) = bus._open
    assert isinstance(consumption, QueueConsumer)
    assert consumption._channel is not None
    await consumption._channel.channel.basic_ack(1_000_000_000)
    await eventually(lambda: not consumption.live)


async def close_publisher_channel(node: Node, bus: AmqpBus) -> None:
    """The broker closes the publisher's channel, with other publishes under way on it."""
    del node
    with pytest.raises(UnavailableError):
        await bus._publisher.send(OutgoingMessage("no-such-exchange", "key", b""))


async def restart_app(node: Node, bus: AmqpBus) -> None:
    """RabbitMQ stops and starts in a node that stays."""
    del bus
    await ctl(node, "stop_app")
    await ctl(node, "start_app")


async def restart_node(node: Node, bus: AmqpBus) -> None:
    """The node is restarted in good order."""
    del bus
    await asyncio.to_thread(node.stop)
    await asyncio.to_thread(node.start)


async def crash_node(node: Node, bus: AmqpBus) -> None:
    """The node is killed and started again."""
    del bus
    await asyncio.to_thread(node.kill)
    await asyncio.to_thread(node.start)


@pytest.mark.parametrize(
    "disturb",
    [
        close_connections,
        close_consumer_channel,
        close_publisher_channel,
        restart_app,
        pytest.param(restart_node, marks=pytest.mark.slow),
        pytest.param(crash_node, marks=pytest.mark.slow),
    ],
)
async def test_no_confirmed_message_is_lost(
    rabbitmq_node: Node, bus: AmqpBus, disturb: Callable[[Node, AmqpBus], Awaitable[None]]
) -> None:
    async with Load(bus) as load:
        await disturb(rabbitmq_node, bus)
        await load.advance()
        await load.finish()
    repeated = sum(count - 1 for count in load.received.values())
    assert repeated < len(load.received), "a loss repeats what was unsettled, not everything"


async def test_a_deleted_queue_comes_back_for_its_consumer(amqp_url: str, namespace: str, bus: AmqpBus) -> None:
    held: list[Delivery] = []
    queue = routing.executions("us")
    consumption = await bus.consume(queue, prefetch=5, handler=held.append)
    await bus.publish_raw(queue, b"first")
    await eventually(lambda: len(held) == 1)
    await delete_queue(amqp_url, f"{namespace}.{queue.name}")
    await eventually(lambda: not consumption.live)
    await eventually(lambda: consumption.live)
    await bus.publish_raw(queue, b"second")
    await eventually(lambda: len(held) == 2)
    with pytest.raises(StaleDeliveryError):
        await held[0].ack()
    await held[1].ack()


async def test_a_deleted_queue_comes_back_for_a_publisher(amqp_url: str, namespace: str, bus: AmqpBus) -> None:
    await delete_queue(amqp_url, f"{namespace}.{QUEUE.name}")
    await bus.publish(CancelJob(job_id="job-1"))
    assert await bus.depth(QUEUE) == 1


async def test_a_deleted_exchange_comes_back(amqp_url: str, namespace: str, bus: AmqpBus) -> None:
    connection = await aiormq.connect(amqp_url)
    await (await connection.channel()).exchange_delete(namespace)
    await connection.close()
    await bus.publish(CancelJob(job_id="job-1"))
    assert await bus.depth(QUEUE) == 1


async def delete_queue(url: str, name: str) -> None:
    """As somebody with the wrong button would."""
    connection = await aiormq.connect(url)
    await (await connection.channel()).queue_delete(name)
    await connection.close()


async def test_a_memory_alarm_stops_publishers_and_not_consumers(
    rabbitmq_node: Node, amqp_url: str, namespace: str
) -> None:
    held: list[Delivery] = []
    async with connected(amqp_url, namespace, publish_timeout_s=1.0) as bus:
        await bus.publish(CancelJob(job_id="job-1"))
        await ctl(rabbitmq_node, "set_vm_memory_high_watermark", "0")
        try:
            with pytest.raises(UnavailableError, match="not confirmed"):
                await bus.publish(CancelJob(job_id="job-2"))
            consumption = await bus.consume(QUEUE, prefetch=1, handler=held.append)
            await eventually(lambda: len(held) == 1)
            await held[0].ack()
            assert consumption.live
        finally:
            await ctl(rabbitmq_node, "set_vm_memory_high_watermark", "absolute", "2GB")
        await insist(bus, CancelJob(job_id="job-3"))
        await eventually(lambda: len(held) >= 2)


async def test_a_client_closes_in_spite_of_a_memory_alarm(rabbitmq_node: Node, amqp_url: str, namespace: str) -> None:
    async with connected(amqp_url, namespace, publish_timeout_s=0.5) as bus:
        await ctl(rabbitmq_node, "set_vm_memory_high_watermark", "0")
        try:
            with pytest.raises(UnavailableError):
                await bus.publish(*(CancelJob(job_id=f"job-{n}") for n in range(300)))
            async with asyncio.timeout(WAIT_S):
                await bus.close()
        finally:
            await ctl(rabbitmq_node, "set_vm_memory_high_watermark", "absolute", "2GB")


async def test_a_full_queue_is_unavailable_not_lost(rabbitmq_node: Node, namespace: str, bus: AmqpBus) -> None:
    policy = '{"max-length": 3, "overflow": "reject-publish"}'
    await ctl(rabbitmq_node, "set_policy", namespace, f"^{namespace}\\.", policy, "--apply-to", "queues")
    try:
        with pytest.raises(UnavailableError):
            await bus.publish(*(CancelJob(job_id=f"job-{n}") for n in range(1000)))
        acks: list[asyncio.Task[None]] = []
        await bus.consume(
            QUEUE, prefetch=100, handler=lambda delivery: acks.append(asyncio.create_task(delivery.ack()))
        )
        await insist(bus, CancelJob(job_id="job-after"))
        await asyncio.gather(*acks)
        assert len(acks) >= 3
    finally:
        await ctl(rabbitmq_node, "clear_policy", namespace)


@pytest.mark.slow
async def test_a_broker_that_lost_its_disk_is_furnished_again(rabbitmq_node: Node, bus: AmqpBus) -> None:
    held: list[Delivery] = []
    seen: list[str] = []
    consumption = await bus.consume(QUEUE, prefetch=5, handler=held.append)
    following = await bus.follow(routing.CANCELLATIONS, lambda body: seen.append(job_of(body)))
    for n in range(20):
        await bus.publish(cancelled(f"old-{n}"))
    await eventually(lambda: len(seen) == 20)
    await asyncio.to_thread(rabbitmq_node.stop)
    await asyncio.to_thread(rabbitmq_node.wipe)
    await asyncio.to_thread(rabbitmq_node.start)
    await insist(bus, cancelled("new-0"))
    await eventually(lambda: consumption.live and following.live)
    await insist(bus, CancelJob(job_id="job-1"))
    await eventually(lambda: bool(held) and "new-0" in seen)
    await insist(bus, cancelled("new-1"))
    await eventually(lambda: seen[-1] == "new-1")


@pytest.mark.parametrize("entries_after", [0, 3, 40])
async def test_a_stream_that_began_anew_is_read_from_its_start(
    amqp_url: str, namespace: str, bus: AmqpBus, entries_after: int
) -> None:
    """Its new end may be before, or behind, where we stopped to read the old one."""
    server = URL(amqp_url)
    assert server.host is not None
    seen: list[str] = []
    async with proxy(server.host, server.port or 5672) as between:
        far = str(server.with_host("127.0.0.1").with_port(between.port))
        async with connected(far, namespace) as reader:
            following = await reader.follow(routing.CANCELLATIONS, lambda body: seen.append(job_of(body)))
            for n in range(20):
                await bus.publish(cancelled(f"old-{n}"))
            await eventually(lambda: len(seen) == 20)
            between.refuse()
            await eventually(lambda: not following.live)
            await delete_queue(amqp_url, f"{namespace}.{routing.CANCELLATIONS.name}")
            await bus.declare()
            for n in range(entries_after):
                await bus.publish(cancelled(f"new-{n}"))
            between.admit()
            await eventually(lambda: following.live)
            await bus.publish(cancelled("new-last"))
            await eventually(lambda: seen[-1] == "new-last")
    assert seen[20:] == [*(f"new-{n}" for n in range(entries_after)), "new-last"]


def job_of(body: bytes) -> str:
    """The job an entry is about."""
    message = decode(body)
    assert isinstance(message, JobCancelled)
    return message.job_id
