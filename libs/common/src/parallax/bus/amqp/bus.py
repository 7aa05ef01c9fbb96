"""The bus of one service on RabbitMQ: two connections, so that a broker that stops publishers still takes acks."""

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from aiormq.abc import AbstractConnection
from aiormq.exceptions import ChannelNotFoundEntity
from yarl import URL

from parallax.bus import letters
from parallax.bus.amqp import letterbox
from parallax.bus.amqp.confirm_batch import OutgoingMessage
from parallax.bus.amqp.connection import ReconnectingConnection, close_channel, loss_is_unavailable
from parallax.bus.amqp.publisher import PUBLISH_TIMEOUT_S, Publisher, probe
from parallax.bus.amqp.queue_consumer import QueueConsumer
from parallax.bus.amqp.stream_consumer import StreamConsumer
from parallax.bus.amqp.topology import Topology
from parallax.bus.letters import DeadLetter, Verdict
from parallax.bus.port import Delivery
from parallax.contracts.messages import Message, encode
from parallax.contracts.routing import Queue
from parallax.errors import InvalidInputError, UnavailableError

DEFAULT_NAMESPACE: Final = "parallax"
MAX_PREFETCH: Final = 2_000
"""Quorum queues take no larger one."""

_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class AmqpBus:
    """See :class:`parallax.bus.port.Bus`. Made by :func:`connect`."""

    def __init__(
        self,
        *,
        publishing: ReconnectingConnection,
        consuming: ReconnectingConnection,
        publisher: Publisher,
        topology: Topology,
    ) -> None:
        self._publishing = publishing
        self._consuming = consuming
        self._publisher = publisher
        self._topology = topology
        self._open: list[QueueConsumer | StreamConsumer] = []

    @property
    def live(self) -> bool:
        """Whether both connections are there right now."""
        return self._publishing.live and self._consuming.live

    @property
    def publishable(self) -> bool:
        """See :attr:`parallax.bus.port.Bus.publishable`."""
        return self._publishing.publishable

    @property
    def blocked(self) -> bool:
        """Whether the broker blocks publishing (resource alarm)."""
        return self._publishing.blocked

    async def publish(self, *messages: Message) -> None:
        """See :meth:`parallax.bus.port.Bus.publish`."""
        await self._publisher.send(*[self._publisher.outgoing(message) for message in messages])

    async def publish_raw(
        self,
        queue: Queue,
        body: bytes,
        *,
        headers: Mapping[str, object] | None = None,
        reply_to: str | None = None,
        correlation_id: str | None = None,
    ) -> None:
        """Put any bytes straight into one queue, under the first of its routing keys unless a header says another."""
        await self._publisher.send(
            OutgoingMessage(
                "",
                self._topology.name(queue),
                body,
                headers={letters.KEY_HEADER: queue.keys[0], **(headers or {})},
                reply_to=reply_to,
                correlation_id=correlation_id,
            )
        )

    async def reply(self, delivery: Delivery, message: Message) -> None:
        """See :meth:`parallax.bus.port.Bus.reply`.

        ``reply_to`` comes from outside: an address among our own queues is ignored.
        """
        address = delivery.reply_to
        if not address or address.startswith(f"{self._topology.namespace}."):
            return
        await self._publisher.send(
            OutgoingMessage("", address, encode(message), mandatory=False, correlation_id=delivery.correlation_id)
        )

    async def consume(self, queue: Queue, *, prefetch: int, handler: Callable[[Delivery], None]) -> QueueConsumer:
        """See :meth:`parallax.bus.port.Bus.consume`.

        Raises:
            UnavailableError: The broker cannot be reached now; once begun, a consumption outlives that.
        """
        if not 1 <= prefetch <= MAX_PREFETCH:
            raise ValueError(f"prefetch must be between 1 and {MAX_PREFETCH}, not {prefetch}")
        consumption = QueueConsumer(
            self._consuming, self._publisher, self._topology, queue, prefetch=prefetch, handler=handler
        )
        await consumption.start()
        self._open.append(consumption)
        return consumption

    async def follow(self, stream: Queue, handler: Callable[[bytes], None]) -> StreamConsumer:
        """See :meth:`parallax.bus.port.Bus.follow`.

        Raises:
            UnavailableError: The broker cannot be reached now; once begun, a following outlives that.
        """
        following = StreamConsumer(self._consuming, self._publisher, self._topology, stream, handler)
        await following.start()
        self._open.append(following)
        return following

    async def depth(self, queue: Queue) -> int:
        """See :meth:`parallax.bus.port.Bus.depth`. It creates nothing: a queue that does not exist is empty."""
        name = self._topology.name(queue)
        channel = await self._consuming.channel(confirms=False)
        try:
            with loss_is_unavailable(f"asking for the depth of {name}"):
                async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                    answer = await channel.queue_declare(name, passive=True)
        except UnavailableError as error:
            if isinstance(error.__cause__, ChannelNotFoundEntity):
                return 0
            raise
        finally:
            await close_channel(channel)
        return answer.message_count or 0

    async def visit_dead_letters(self, decide: Callable[[DeadLetter], Verdict]) -> bool:
        """Show every dead letter to ``decide`` and do as it says; returns whether all were shown."""
        return await letterbox.visit(self._consuming, self._publisher, self._topology, decide)

    async def declare(self) -> None:
        """Create whatever queue or exchange of the installation is missing."""
        connection = await self._consuming.connection()
        with loss_is_unavailable("declaring the queues"):
            await self._topology.declare(connection)

    async def close(self) -> None:
        """See :meth:`parallax.bus.port.Bus.close`."""
        opened, self._open = self._open, []
        await asyncio.gather(*(each.close() for each in opened))
        await asyncio.gather(self._consuming.close(), self._publishing.close())
        await self._publisher.close()


async def connect(
    url: str,
    *,
    namespace: str = DEFAULT_NAMESPACE,
    regions: Iterable[str],
    name: str,
    publish_timeout_s: float = PUBLISH_TIMEOUT_S,
) -> AmqpBus:
    """Connect to a broker and declare the installation's queues.

    ``name`` is what the broker shows for the connections.

    Raises:
        InvalidInputError: The URL or the namespace cannot be right.
        UnavailableError: The broker does not answer or does not let us in.
    """
    topology = Topology(parse_namespace(namespace), regions)
    parsed = parse_url(url)

    async def prepare(connection: AbstractConnection) -> None:
        await topology.declare(connection)

    publishing = ReconnectingConnection(
        parsed, name=f"{name} publish", prepare=prepare, probe=lambda connection: probe(connection, topology)
    )
    consuming = ReconnectingConnection(parsed, name=f"{name} consume", prepare=prepare)
    publisher = Publisher(publishing, topology, timeout_s=publish_timeout_s)
    bus = AmqpBus(publishing=publishing, consuming=consuming, publisher=publisher, topology=topology)
    try:
        await publishing.start()
        await consuming.start()
    except BaseException:
        await bus.close()
        raise
    return bus


def parse_url(url: str) -> URL:
    """The broker's URL; the error never repeats it, because it may hold a password.

    Raises:
        InvalidInputError: It is not an AMQP URL.
    """
    try:
        parsed = URL(url)
        usable = parsed.scheme in ("amqp", "amqps") and bool(parsed.host)
    except ValueError:
        usable = False
    if not usable:
        raise InvalidInputError("the broker's URL must look like amqp://user:password@host:5672/vhost (or amqps://…)")
    return URL(url)


def parse_namespace(namespace: str) -> str:
    """The namespace.

    Raises:
        InvalidInputError: It cannot be part of a queue's name.
    """
    if not _NAMESPACE.fullmatch(namespace) or namespace.startswith("amq."):
        raise InvalidInputError(
            f"namespace {namespace!r}: use letters, digits, dot, underscore and dash, at most 64, and not amq."
        )
    return namespace
