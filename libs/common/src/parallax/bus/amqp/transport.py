"""The socket under a connection to the broker: what is written within one turn of the event loop leaves in one piece.

The protocol layer writes each message and each acknowledgement by itself. A question batch is many of them at once,
and each write costs a system call here and a wake-up in the broker.
"""

import asyncio
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

KEEPALIVE_OPTIONS: Final = (("SO_KEEPALIVE", 1), ("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3))
"""A peer that vanished while nothing is sent is noticed after 5 + 3 x 3 = 14 s (by default two hours)."""
USER_TIMEOUT_MS: Final = 12_000
"""A peer that vanished while something is sent is noticed after this (by default 15 minutes)."""
RESET: Final = struct.pack("ii", 1, 0)
"""``SO_LINGER`` with no time to linger: closing resets the connection and drops what was not sent."""


class GatheringWriter(asyncio.StreamWriter):
    """A stream writer that hands on its data once per turn of the event loop."""

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        protocol: asyncio.StreamReaderProtocol,
        reader: asyncio.StreamReader,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(transport, protocol, reader, loop)
        self._turns = loop
        self._gathered: list[bytes | bytearray | memoryview] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take data; it leaves at the end of this turn."""
        if not self._gathered:
            self._turns.call_soon(self._release)
        self._gathered.append(data)

    def writelines(self, data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Take several pieces; they leave at the end of this turn, behind what was written before."""
        for piece in data:
            self.write(piece)

    async def drain(self) -> None:
        """Hand on what there is, and wait while the transport has too much of it."""
        self._release()
        await super().drain()

    def write_eof(self) -> None:
        """Hand on what there is, and nothing after it."""
        self._release()
        super().write_eof()

    def close(self) -> None:
        """Hand on what there is, and close."""
        self._release()
        super().close()

    def reset(self) -> None:
        """Drop what is gathered and what the system holds, and reset the connection.

        A broker that blocks publishers closes such a connection when the alarm ends, before it reads on: the bytes it
        has not read are never delivered (measured on RabbitMQ 3.10; after an orderly close it delivers some of them).
        """
        self._gathered.clear()
        if (connected := self.transport.get_extra_info("socket")) is not None:
            with suppress(OSError):  # closed already
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.transport.abort()

    def _release(self) -> None:
        if self._gathered:
            data = b"".join(self._gathered)
            self._gathered.clear()
            super().write(data)


class GatheringTransport(TransportFactory):
    """Opens one connection, an encrypted one for ``amqps``, whose writes are gathered."""

    def __init__(self) -> None:
        self.writer: GatheringWriter | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the broker.

        Raises:
            AMQPConnectionError: It cannot be reached.
        """
        certificates = kwargs.pop("ssl_context_provider")
        assert url.host is not None
        assert url.port is not None, "aiormq fills in the default"
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            transport, _ = await loop.create_connection(
                lambda: protocol,
                url.host,
                url.port,
                ssl=await certificates.get_context() if url.scheme == "amqps" else None,
                **kwargs,
            )
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        notice_silence(transport.get_extra_info("socket"))
        self.writer = GatheringWriter(transport, protocol, reader, loop)
        return reader, self.writer


def notice_silence(connected: socket.socket) -> None:
    """Let the system break the connection when the peer vanishes without a word, as far as this platform can."""
    for name, value in KEEPALIVE_OPTIONS:
        if hasattr(socket, name):
            level = socket.SOL_SOCKET if name.startswith("SO_") else socket.IPPROTO_TCP
            connected.setsockopt(level, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
