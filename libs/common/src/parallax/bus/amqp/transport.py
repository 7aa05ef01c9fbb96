"""The socket under a connection to the broker: what is written within one turn of the event loop leaves in one piece.

The protocol layer writes each message and each acknowledgement by itself. A question batch is many of them at once,
and each write costs a system call here and a wake-up in the broker.
"""

import asyncio
from typing import Any

from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL


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

    def _release(self) -> None:
        if self._gathered:
            data = b"".join(self._gathered)
            self._gathered.clear()
            super().write(data)


class GatheringTransport(TransportFactory):
    """Opens connections, encrypted ones for ``amqps``, whose writes are gathered."""

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
        return reader, GatheringWriter(transport, protocol, reader, loop)
