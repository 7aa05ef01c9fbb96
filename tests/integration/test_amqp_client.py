"""What a client of RabbitMQ takes, refuses, keeps to itself and puts on the wire."""

import socket
from collections.abc import AsyncIterator
from typing import Any

import aiormq
import pytest
from aiormq.exceptions import ChannelNotFoundEntity
from yarl import URL

from parallax.bus import amqp
from parallax.bus.amqp import AmqpBus
from parallax.bus.amqp.confirm_batch import OutgoingMessage
from parallax.bus.amqp.states.queue_consumer import ConsumerState, Phase
from parallax.bus.amqp.transport import USER_TIMEOUT_MS
from parallax.bus.port import Delivery
from parallax.contracts import routing
from parallax.contracts.messages import CancelJob
from parallax.contracts.routing import Queue
from parallax.errors import InvalidInputError, UnavailableError, UnroutableError
from tests.harness.rabbitmq import REGIONS
from tests.integration.amqp_stage import QUEUE, cancelled, connected, eventually, heartbeat

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
async def bus(amqp_url: str, namespace: str) -> AsyncIterator[AmqpBus]:
    """A client of the installation."""
    async with connected(amqp_url, namespace) as made:
        yield made


async def test_queues_made_with_other_properties_are_taken_as_they_are(amqp_url: str, namespace: str) -> None:
    connection = await aiormq.connect(amqp_url)
    channel = await connection.channel()
    await channel.queue_declare(f"{namespace}.{QUEUE.name}", durable=True)  # a classic queue
    await connection.close()
    async with connected(amqp_url, namespace) as bus:
        await bus.publish(CancelJob(job_id="job-1"))
        held: list[Delivery] = []
        await bus.consume(QUEUE, prefetch=1, handler=held.append)
        await eventually(lambda: len(held) == 1)


async def test_a_message_whose_last_queue_is_of_another_installation_is_refused(amqp_url: str, namespace: str) -> None:
    async with connected(amqp_url, namespace) as bus:
        with pytest.raises(UnroutableError):
            await bus._publisher.send(OutgoingMessage(namespace, "execution.run.atlantis", b"{}"))


async def test_the_password_is_in_no_error(amqp_url: str, namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    wrong = str(URL(amqp_url).with_password("s3cret-pass"))
    with pytest.raises(UnavailableError) as refused:
        await amqp.connect(wrong, namespace=namespace, regions=REGIONS, name="intruder")
    with pytest.raises(UnavailableError) as unreachable:
        await amqp.connect("amqp://me:s3cret-pass@127.0.0.1:9/", namespace=namespace, regions=REGIONS, name="lost")
    with pytest.raises(InvalidInputError) as invalid:
        await amqp.connect("me:s3cret-pass@127.0.0.1:5672", namespace=namespace, regions=REGIONS, name="lost")
    for text in (str(refused.value), str(unreachable.value), str(invalid.value), caplog.text):
        assert "s3cret-pass" not in text


@pytest.mark.parametrize("namespace", ["", "a b", "amq.mine", "x" * 65, "a/b"])
async def test_a_namespace_that_cannot_be_is_refused(namespace: str) -> None:
    with pytest.raises(InvalidInputError, match="namespace"):
        await amqp.connect("amqp://127.0.0.1/", namespace=namespace, regions=REGIONS, name="x")


async def test_a_heartbeat_expires_and_nothing_else_does(amqp_url: str, namespace: str, bus: AmqpBus) -> None:
    await bus.publish(CancelJob(job_id="job-1"), heartbeat())
    connection = await aiormq.connect(amqp_url)
    channel = await connection.channel()
    command = await channel.basic_get(f"{namespace}.{QUEUE.name}")
    sign_of_life = await channel.basic_get(f"{namespace}.{routing.HEARTBEATS.name}")
    await connection.close()
    assert command.header.properties.expiration is None
    assert sign_of_life.header.properties.expiration == str(1000 * routing.HEARTBEAT_EXPIRES_S)
    assert command.header.properties.delivery_mode == sign_of_life.header.properties.delivery_mode == 2
    assert command.header.properties.message_id != sign_of_life.header.properties.message_id


async def test_an_answer_never_goes_into_our_own_queues(amqp_url: str, namespace: str, bus: AmqpBus) -> None:
    held: list[Delivery] = []
    await bus.consume(QUEUE, prefetch=1, handler=held.append)
    trap = f"{namespace}.{routing.FACTS.name}"
    await bus.publish_raw(QUEUE, b"{}", reply_to=trap)
    await eventually(lambda: len(held) == 1)
    await bus.reply(held[0], cancelled("job-1"))
    assert await bus.depth(routing.FACTS) == 0


async def test_what_arrives_while_a_consumer_stops_goes_to_another(bus: AmqpBus) -> None:
    first: list[Delivery] = []
    second: list[Delivery] = []
    stopping = await bus.consume(QUEUE, prefetch=1, handler=first.append)
    stopping._state = ConsumerState(Phase.STOPPING, 1)  # the broker does not know it yet
    await bus.consume(QUEUE, prefetch=5, handler=second.append)
    await bus.publish(*(CancelJob(job_id=f"job-{n}") for n in range(4)))
    await eventually(lambda: len(second) == 4)
    assert first == []


async def test_a_binding_that_an_earlier_version_made_is_removed(amqp_url: str, namespace: str, bus: AmqpBus) -> None:
    """A message that still went to the queue it once belonged to would be refused there, and become a dead letter."""
    old = [Queue(name, keys) for name, keys in routing.RETIRED_BINDINGS.items()]
    assert any(queue.name == routing.EVENTS.name and "batch.opened" in queue.keys for queue in old)
    connection = await aiormq.connect(amqp_url)
    channel = await connection.channel()
    for queue in old:
        for key in queue.keys:
            await channel.queue_bind(f"{namespace}.{queue.name}", namespace, routing_key=key)
    await bus._publisher.send(OutgoingMessage(namespace, "batch.opened", b"{}"))
    assert (await bus.depth(routing.EVENTS), await bus.depth(routing.FACTS)) == (1, 1)
    await bus.declare()
    await bus._publisher.send(OutgoingMessage(namespace, "batch.opened", b"{}"))
    assert (await bus.depth(routing.EVENTS), await bus.depth(routing.FACTS)) == (1, 2)
    await connection.close()


async def test_asking_for_a_depth_creates_nothing_and_takes_one_channel(
    amqp_url: str, namespace: str, bus: AmqpBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await aiormq.connect(amqp_url)
    channel = await connection.channel()
    await channel.queue_delete(f"{namespace}.{routing.FACTS.name}")
    opened = 0
    open_channel = aiormq.connection.Connection.channel

    async def count(*arguments: Any, **options: Any) -> Any:
        nonlocal opened
        opened += 1
        return await open_channel(*arguments, **options)

    monkeypatch.setattr(aiormq.connection.Connection, "channel", count)
    assert await bus.depth(routing.FACTS) == 0
    assert await bus.depth(QUEUE) == 0
    assert opened == 2
    monkeypatch.undo()
    with pytest.raises(ChannelNotFoundEntity):
        await channel.queue_declare(f"{namespace}.{routing.FACTS.name}", passive=True)
    await connection.close()


async def test_the_system_notices_a_peer_that_vanished(bus: AmqpBus) -> None:
    for connection in (bus._publishing, bus._consuming):
        assert connection._current is not None
        writer = connection._current._transport.writer
        assert writer is not None
        connected = writer.transport.get_extra_info("socket")
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        for name, expected in (("TCP_KEEPIDLE", 5), ("TCP_USER_TIMEOUT", USER_TIMEOUT_MS)):
            if hasattr(socket, name):
                assert connected.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == expected
