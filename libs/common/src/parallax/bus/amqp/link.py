"""A connection to the broker that is made again when it is lost, and one translation of what can go wrong with it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import aio_pika
from aio_pika.abc import AbstractConnection as OpenedConnection
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.channel import Channel
from aiormq.exceptions import AMQPError
from yarl import URL

from parallax.bus.amqp.transport import GatheringTransport
from parallax.errors import UnavailableError

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 15.0
"""For TCP, TLS, login and the topology together; a broker that boots accepts connections before it answers."""
RECONNECT_PAUSE_S: Final = 0.5
"""After a failed attempt everyone fails at once for this long, so that a dead broker is not hammered."""
HEARTBEAT_S: Final = "15"
"""A peer that vanished without a word is noticed within a minute (the library's default takes three)."""
CLOSE_TIMEOUT_S: Final = 5.0
"""Saying goodbye may take this long; a broker under memory alarm reads nothing, not even that."""


@contextmanager
def loss_is_unavailable(what: str) -> Iterator[None]:
    """Turn the many ways in which aiormq reports a lost channel or connection into ``UnavailableError``.

    One of them is ``CancelledError`` in a task that nobody cancelled.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise UnavailableError(f"{what}: the connection was lost") from error
    except (AMQPError, RuntimeError, OSError, TimeoutError) as error:
        raise UnavailableError(f"{what}: {describe(error)}") from error
    except Exception as error:
        if type(error) is not Exception:  # what aiormq raises when it knows no reason
            raise
        raise UnavailableError(f"{what}: the connection was lost") from error


def describe(error: BaseException) -> str:
    """An error of the client library as text, always with its class: many come without a message."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Link:
    """One connection, made when first needed and again whenever it is lost.

    ``prepare`` runs on every new connection before anybody else gets it.
    """

    def __init__(self, url: URL, *, name: str, prepare: Callable[[AbstractConnection], Awaitable[None]]) -> None:
        query = {"heartbeat": HEARTBEAT_S, **url.query}
        self._url = url.with_query(query)
        self._name = name
        self._prepare = prepare
        self._lock = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._opened: OpenedConnection | None = None
        """aio-pika's side of the connection; it closes the connection when it is forgotten."""
        self._closed = False
        self._failure = ""
        self._failed_until = 0.0

    @property
    def live(self) -> bool:
        """Whether there is a connection right now."""
        return self._connection is not None and self._connection.is_opened

    async def channel(self, *, confirms: bool) -> Channel:
        """A new channel.

        Raises:
            UnavailableError: The broker cannot be reached.
        """
        connection = await self.connection()
        with loss_is_unavailable("opening a channel"):
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                channel = await connection.channel(publisher_confirms=confirms)
        assert isinstance(channel, Channel)
        return channel

    async def connection(self) -> AbstractConnection:
        """The connection, made anew if it is not there.

        Raises:
            UnavailableError: The broker cannot be reached.
        """
        if self._connection is not None and self._connection.is_opened:
            return self._connection
        async with self._lock:
            if self._closed:
                raise UnavailableError("this client of the bus is closed")
            if self._connection is not None and self._connection.is_opened:
                return self._connection
            now = asyncio.get_running_loop().time()
            if now < self._failed_until:
                raise UnavailableError(self._failure)
            try:
                self._connection = await self._connect()
            except UnavailableError as error:
                self._failure = str(error)
                self._failed_until = asyncio.get_running_loop().time() + RECONNECT_PAUSE_S
                raise
            return self._connection

    async def _connect(self) -> AbstractConnection:
        where = f"broker {self._url.host}:{self._url.port}"
        connection: AbstractConnection | None = None
        try:
            with loss_is_unavailable(where):
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    opened = self._opened = aio_pika.Connection(
                        self._url, client_properties={"connection_name": self._name}
                    )
                    opened.kwargs["transport_factory"] = GatheringTransport()
                    await opened.connect()
                    assert self._opened.transport is not None, "it has just connected"
                    connection = self._opened.transport.connection
                    await self._prepare(connection)
        except BaseException:
            if connection is not None:
                await _part(connection)
            raise
        log.info("connected to %s as %r", where, self._name)
        return connection

    async def close(self) -> None:
        """Close the connection and make no other."""
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            await _part(connection)


async def _part(connection: AbstractConnection) -> None:
    with suppress(UnavailableError), loss_is_unavailable("closing"):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await connection.close()


async def close_channel(channel: AbstractChannel) -> None:
    """Close a channel, whatever state it is in."""
    if not channel.is_closed:
        with suppress(UnavailableError), loss_is_unavailable("closing a channel"):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await channel.close()
