"""What the conformance suite needs from a bus beyond the port: clients, a cut, foreign messages and mailboxes."""

import asyncio
from collections.abc import Callable
from typing import Protocol
from uuid import uuid4

import aiormq
from aiormq.abc import AbstractConnection, DeliveredMessage
from yarl import URL

from parallax.bus import amqp
from parallax.bus.memory import MemoryBroker, MemoryBus, Reply
from parallax.bus.port import Bus, Consumption, Following
from parallax.contracts.routing import Queue
from tests.harness.proxy import Proxy
from tests.harness.rabbitmq import REGIONS

WAIT_S = 30.0
"""Longest wait for anything that should happen at once; the machine may be busy."""


class Installation(Protocol):
    """One broker with one installation's queues, clean at the start of a test."""

    async def client(self) -> Bus:
        """A new client of the installation."""
        ...

    async def cut(self, victim: Consumption | Following) -> None:
        """Break every connection; return when the victim has noticed."""
        ...

    async def foreign(self, queue: Queue, body: bytes, *, reply_to: str | None, correlation_id: str | None) -> None:
        """Put a message into a queue without our library's help."""
        ...

    async def mailbox(self) -> tuple[str, Callable[[], "asyncio.Future[Reply]"]]:
        """A new address for answers, and how to wait for the next one."""
        ...


class MemoryInstallation:
    """An installation in this process."""

    def __init__(self) -> None:
        self._broker = MemoryBroker(REGIONS)
        self._clients: list[Bus] = []

    async def client(self) -> Bus:
        """A new client of the installation."""
        bus = MemoryBus(self._broker)
        self._clients.append(bus)
        return bus

    async def cut(self, victim: Consumption | Following) -> None:
        """Break every connection."""
        del victim  # notices at once
        self._broker.drop_connections()

    async def foreign(self, queue: Queue, body: bytes, *, reply_to: str | None, correlation_id: str | None) -> None:
        """Put a message into a queue."""
        bus = MemoryBus(self._broker)
        await bus.publish_raw(queue, body, reply_to=reply_to, correlation_id=correlation_id)

    async def mailbox(self) -> tuple[str, Callable[[], "asyncio.Future[Reply]"]]:
        """A new address for answers."""
        address = uuid4().hex
        replies = self._broker.mailbox(address)
        return address, lambda: asyncio.ensure_future(replies.get())

    async def close(self) -> None:
        """Close every client."""
        for bus in self._clients:
            await bus.close()


class AmqpInstallation:
    """An installation on a real broker."""

    def __init__(self, url: str, namespace: str, proxy: Proxy) -> None:
        self._url = url
        self._proxy = proxy
        self._namespace = namespace
        self._clients: list[Bus] = []
        self._foreign: AbstractConnection | None = None

    async def client(self) -> Bus:
        """A new client of the installation."""
        url = str(URL(self._url).with_host("127.0.0.1").with_port(self._proxy.port))
        bus = await amqp.connect(url, namespace=self._namespace, regions=REGIONS, name="conformance")
        self._clients.append(bus)
        return bus

    async def cut(self, victim: Consumption | Following) -> None:
        """Break every connection, as a network does: without a word to the broker."""
        self._proxy.cut()
        async with asyncio.timeout(WAIT_S):
            while victim.live:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.01)

    async def foreign(self, queue: Queue, body: bytes, *, reply_to: str | None, correlation_id: str | None) -> None:
        """Publish with the client library alone."""
        channel = await (await self._connection()).channel()
        properties = aiormq.spec.Basic.Properties(reply_to=reply_to, correlation_id=correlation_id)
        await channel.basic_publish(body, exchange=self._namespace, routing_key=queue.keys[0], properties=properties)

    async def mailbox(self) -> tuple[str, Callable[[], "asyncio.Future[Reply]"]]:
        """An exclusive queue."""
        channel = await (await self._connection()).channel()
        declared = await channel.queue_declare("", exclusive=True)
        replies: asyncio.Queue[Reply] = asyncio.Queue()

        async def keep(message: DeliveredMessage) -> None:
            replies.put_nowait(Reply(message.body, message.header.properties.correlation_id))

        assert declared.queue is not None
        await channel.basic_consume(declared.queue, keep, no_ack=True)
        return declared.queue, lambda: asyncio.ensure_future(replies.get())

    async def close(self) -> None:
        """Close every client."""
        for bus in self._clients:
            await bus.close()
        if self._foreign is not None:
            await self._foreign.close()

    async def _connection(self) -> AbstractConnection:
        if self._foreign is None:
            self._foreign = await aiormq.connect(self._url)
        return self._foreign
