"""A consumer that is taken up again whenever its channel, its connection or its queue was lost."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import ChannelInvalidStateError
from pamqp.commands import Basic

from parallax.bus import letters
from parallax.bus.amqp.link import Link, close_channel, loss_is_unavailable
from parallax.bus.amqp.publisher import Publisher
from parallax.bus.amqp.topology import Topology
from parallax.bus.amqp.window import Outgoing
from parallax.bus.port import Delivery
from parallax.contracts.routing import Queue
from parallax.errors import StaleDeliveryError, UnavailableError, UnroutableError

log = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 3.0
"""Between attempts to get the consumer back: a restarted broker is used again within seconds."""
START_TIMEOUT_S: Final = 30.0
"""A consumer that cannot begin within this is reported, not waited for."""
BURY_PAUSE_S: Final = 2.0
"""Between attempts to move a message to the dead letters while publishing fails."""

OnMessage = Callable[["Session", DeliveredMessage], Any]
"""Called for every message; what it returns is awaited if it can be."""


class Session:
    """A consumer on one channel, from its beginning until either is lost."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.ended = asyncio.Event()
        self.settled_up_to = 0
        self._tag: str | None = None
        channel.closing.add_done_callback(lambda _: self.ended.set())
        channel.on_consumer_cancel_callbacks.add(lambda _: self.ended.set())

    async def begin(self, queue: str, *, prefetch: int, arguments: dict[str, Any], on_message: OnMessage) -> None:
        """Start to consume."""
        await self.channel.basic_qos(prefetch_count=prefetch)
        answer = await self.channel.basic_consume(
            queue, lambda message: on_message(self, message), arguments=arguments or None
        )
        self._tag = answer.consumer_tag

    async def cancel(self) -> None:
        """Take nothing more; the channel stays open for settling."""
        if self._tag is not None and not self.channel.is_closed:
            with suppress(UnavailableError), loss_is_unavailable("stopping a consumer"):
                await self.channel.basic_cancel(self._tag)


class Pauses:
    """Growing pauses between attempts, with jitter."""

    def __init__(self) -> None:
        self._next_s = FIRST_PAUSE_S

    async def next(self) -> None:
        """Wait for the next one."""
        await asyncio.sleep(self._next_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, guards nothing
        self._next_s = min(2 * self._next_s, LONGEST_PAUSE_S)


async def open_session(
    link: Link,
    topology: Topology,
    queue: Queue,
    *,
    prefetch: int,
    on_message: OnMessage,
    arguments: dict[str, Any] | None = None,
) -> Session:
    """Declare the queue, in case it was deleted, and consume it on a channel of its own.

    Raises:
        UnavailableError: The broker did not let us.
    """
    name = topology.name(queue)
    with loss_is_unavailable(f"declaring {name}"):
        async with asyncio.timeout(START_TIMEOUT_S):
            await topology.declare(await link.connection(), (queue,))
    channel = await link.channel(confirms=False)
    try:
        with loss_is_unavailable(f"consuming {name}"):
            async with asyncio.timeout(START_TIMEOUT_S):
                session = Session(channel)
                await session.begin(name, prefetch=prefetch, arguments=arguments or {}, on_message=on_message)
                return session
    except BaseException:
        await close_channel(channel)
        raise


class AmqpDelivery:
    """One message in the hands of a consumer."""

    __slots__ = ("_consumption", "_message", "_session", "_settled")

    def __init__(self, consumption: "AmqpConsumption", session: Session, message: DeliveredMessage) -> None:
        self._consumption = consumption
        self._session = session
        self._message = message
        self._settled = False

    @property
    def body(self) -> bytes:
        """The message as it was published."""
        return self._message.body

    @property
    def headers(self) -> Mapping[str, object]:
        """Headers of the message."""
        return headers_of(self._message)

    @property
    def delivery_count(self) -> int:
        """How often it was delivered before."""
        count = headers_of(self._message).get("x-delivery-count")
        return count if isinstance(count, int) else 0

    @property
    def reply_to(self) -> str | None:
        """Where the requester listens."""
        return self._message.header.properties.reply_to

    @property
    def correlation_id(self) -> str | None:
        """What the requester wants to see in the answer."""
        return self._message.header.properties.correlation_id

    async def ack(self, *, multiple: bool = False) -> None:
        """See :meth:`parallax.bus.port.Delivery.ack`."""
        tag = self._claim()
        if multiple:
            self._session.settled_up_to = tag
        await self._settle(self._session.channel.basic_ack(tag, multiple=multiple, wait=False))

    async def requeue(self) -> None:
        """See :meth:`parallax.bus.port.Delivery.requeue`.

        A reject, because RabbitMQ 4.3 and later count it as a failed delivery, and a nack not at all.
        """
        tag = self._claim()
        await self._settle(self._session.channel.basic_reject(tag, requeue=True, wait=False))

    async def pass_on(self) -> None:
        """Give it back unseen: nothing failed, so newer brokers need not count it."""
        tag = self._claim()
        await self._settle(self._session.channel.basic_nack(tag, requeue=True, wait=False))

    async def reject(self, reason: str) -> None:
        """See :meth:`parallax.bus.port.Delivery.reject`.

        Raises:
            UnavailableError: The dead letter could not be stored; the delivery is still ours to settle.
        """
        tag = self._claim()
        try:
            await self._consumption.bury(self._message, reason)
        except UnavailableError:
            self._settled = False
            raise
        await self._settle(self._session.channel.basic_ack(tag, wait=False))

    def _claim(self) -> int:
        """The delivery tag, to be settled now. A tag settled twice would close the channel for everyone on it."""
        if self._session.ended.is_set():
            raise StaleDeliveryError("the channel of this delivery is gone")
        tag = tag_of(self._message)
        if self._settled or tag <= self._session.settled_up_to:
            raise RuntimeError("this delivery was settled before")
        self._settled = True
        return tag

    @staticmethod
    async def _settle(sending: Awaitable[None]) -> None:
        try:
            with loss_is_unavailable("settling"):
                try:
                    await sending
                except ChannelInvalidStateError as error:
                    raise StaleDeliveryError("the channel of this delivery is gone") from error
        except UnavailableError as error:
            raise StaleDeliveryError("the channel of this delivery is gone") from error


class AmqpConsumption:
    """A consumer of one queue, kept alive by a task."""

    def __init__(
        self,
        link: Link,
        publisher: Publisher,
        topology: Topology,
        queue: Queue,
        *,
        prefetch: int,
        handler: Callable[[Delivery], None],
    ) -> None:
        self._link = link
        self._publisher = publisher
        self._topology = topology
        self._queue = queue
        self._prefetch = prefetch
        self._handler = handler
        self._session: Session | None = None
        self._stopping = False
        self._supervisor: asyncio.Task[None] | None = None
        self._chores: set[asyncio.Task[None]] = set()

    @property
    def live(self) -> bool:
        """Whether the broker has this consumer right now."""
        return self._session is not None and not self._session.ended.is_set() and not self._stopping

    async def start(self) -> None:
        """Begin to consume.

        Raises:
            UnavailableError: The broker did not give us the consumer.
        """
        self._session = await self._attach()
        self._supervisor = asyncio.create_task(self._supervise(self._session), name=f"consume {self._queue.name}")

    async def stop(self) -> None:
        """See :meth:`parallax.bus.port.Consumption.stop`."""
        self._stopping = True
        if self._session is not None:
            await self._session.cancel()

    async def close(self) -> None:
        """See :meth:`parallax.bus.port.Consumption.close`."""
        await self.stop()
        for task in (self._supervisor, *self._chores):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._session is not None:
            self._session.ended.set()
            await close_channel(self._session.channel)

    async def bury(self, message: DeliveredMessage, reason: str) -> None:
        """Publish a copy of a message to the dead letters."""
        properties, headers = message.header.properties, headers_of(message)
        key = str(headers.get(letters.KEY_HEADER) or message.routing_key)
        letter = Outgoing(
            self._topology.dead_exchange,
            letters.dead_key(self._queue, key),
            message.body,
            headers={
                **letters.kept_headers(headers),
                letters.REASON_HEADER: letters.clean_reason(reason),
                letters.QUEUE_HEADER: self._queue.name,
                letters.KEY_HEADER: key,
                letters.TIME_HEADER: datetime.now(UTC).isoformat(),
            },
            reply_to=properties.reply_to,
            correlation_id=properties.correlation_id,
        )
        try:
            await self._publisher.send(letter)
        except UnroutableError as error:
            raise UnavailableError(f"no queue for dead letters with the key {letter.key!r}") from error

    async def _attach(self) -> Session:
        return await open_session(
            self._link, self._topology, self._queue, prefetch=self._prefetch, on_message=self._on_message
        )

    async def _supervise(self, session: Session) -> None:
        while True:
            await session.ended.wait()
            await close_channel(session.channel)
            if self._stopping:
                return
            log.warning("the consumer of %s was lost", self._queue.name)
            session = self._session = await self._attach_again()
            log.info("the consumer of %s is back", self._queue.name)

    async def _attach_again(self) -> Session:
        pauses = Pauses()
        while True:
            await pauses.next()
            try:
                return await self._attach()
            except UnavailableError as error:
                log.warning("the consumer of %s is still lost: %s", self._queue.name, error)

    def _on_message(self, session: Session, message: DeliveredMessage) -> None:
        delivery = AmqpDelivery(self, session, message)
        if self._stopping:
            self._do(self._hand_back(delivery))
        elif delivery.delivery_count >= letters.delivery_bound(delivery.headers):
            self._do(self._give_up(delivery))
        else:
            try:
                self._handler(delivery)
            except Exception:
                log.exception("the handler of %s raised; its delivery stays unsettled", self._queue.name)

    async def _hand_back(self, delivery: AmqpDelivery) -> None:
        with suppress(StaleDeliveryError):
            await delivery.pass_on()

    async def _give_up(self, delivery: AmqpDelivery) -> None:
        reason = letters.too_many_deliveries(delivery.delivery_count)
        log.error("dead letter from %s: %s", self._queue.name, reason)
        while True:
            try:
                await delivery.reject(reason)
            except UnavailableError:
                await asyncio.sleep(BURY_PAUSE_S)  # until the broker is back or the delivery has gone stale
            except StaleDeliveryError:
                return
            else:
                return

    def _do(self, chore: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)


def headers_of(message: DeliveredMessage) -> Mapping[str, object]:
    """Headers of a message that may have none."""
    return message.header.properties.headers or {}


def tag_of(message: DeliveredMessage) -> int:
    """The number by which a delivery is settled on its channel."""
    assert isinstance(message.delivery, Basic.Deliver)
    assert message.delivery.delivery_tag is not None
    return message.delivery.delivery_tag
