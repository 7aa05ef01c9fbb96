"""A TCP proxy between clients and a server, to lose, delay and silence connections the way networks do."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

ANYBODY: Final = ""
"""The client behind a proxy's first port."""
CHUNK_BYTES: Final = 65_536
SLOW_CHUNK_BYTES: Final = 4_096
"""A slow line forwards small pieces, so that it is slow all the time and not silent between bursts."""

Dial = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Direction(Enum):
    """Which way bytes flow."""

    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


BOTH: Final = frozenset(Direction)


@dataclass(slots=True)
class _Line:
    """What the network does to one client's connections."""

    refusing: bool = False
    bytes_per_s: float | None = None
    latency_s: float = 0.0
    silent: frozenset[Direction] = frozenset()
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced, whenever a silence ends."""
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def cut(self) -> None:
        for writer in tuple(self.writers):
            writer.transport.abort()

    async def admitted(self, direction: Direction) -> None:
        """Wait until bytes may flow this way."""
        while direction in self.silent:
            await self.changed.wait()

    def speak(self) -> None:
        self.silent = frozenset()
        self.changed.set()
        self.changed = asyncio.Event()


class Proxy:
    """Forwards bytes from ports of its own to a server; each client has its port, so that it can be hurt alone.

    Every fault takes the names of the clients that suffer it; without names all of them do.
    """

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._lines: dict[str, _Line] = {}
        self._ports: dict[str, int] = {}
        self._pipes: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Task[asyncio.Server]] = []

    @property
    def port(self) -> int:
        """The port of a client that needs no name."""
        return self.listen(ANYBODY)

    def listen(self, client: str) -> int:
        """The port for a client; it accepts connections from now on."""
        if client not in self._ports:
            listening = socket.create_server(("127.0.0.1", 0), backlog=512)
            line = self._lines[client] = _Line()
            serving = asyncio.start_server(lambda reader, writer: self._accept(line, reader, writer), sock=listening)
            self._servers.append(asyncio.ensure_future(serving))
            self._ports[client] = int(listening.getsockname()[1])
        return self._ports[client]

    def cut(self, *clients: str) -> None:
        """Break every connection at once; new ones are accepted."""
        for line in self._of(clients):
            line.cut()

    def refuse(self, *clients: str) -> None:
        """Break every connection and let no new one through until ``admit``."""
        for line in self._of(clients):
            line.refusing = True
            line.cut()

    def admit(self, *clients: str) -> None:
        """Let connections through again."""
        for line in self._of(clients):
            line.refusing = False

    def silence(self, *clients: str, directions: Collection[Direction] = BOTH) -> None:
        """Keep connections open, accept new ones, and forward nothing in these directions, not even their end."""
        for line in self._of(clients):
            line.silent = frozenset(directions)

    def speak(self, *clients: str) -> None:
        """End a silence: what was held back is forwarded."""
        for line in self._of(clients):
            line.speak()

    def slow(self, *clients: str, bytes_per_s: float, latency_s: float) -> None:
        """Forward so many bytes a second on each connection, each piece so late."""
        for line in self._of(clients):
            line.bytes_per_s, line.latency_s = bytes_per_s, latency_s

    def fast(self, *clients: str) -> None:
        """Forward without delay again."""
        for line in self._of(clients):
            line.bytes_per_s, line.latency_s = None, 0.0

    async def close(self) -> None:
        """Break every connection and stop to listen."""
        for server in await asyncio.gather(*self._servers):
            server.close()
        self.cut()
        for pipe in tuple(self._pipes):
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    def _of(self, clients: Collection[str]) -> list[_Line]:
        return [self._lines[name] for name in clients] if clients else list(self._lines.values())

    async def _accept(self, line: _Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if line.refusing:
            writer.transport.abort()
            return
        line.writers.add(writer)
        try:
            up_reader, up_writer = await self._dial()
        except OSError:
            line.writers.discard(writer)
            writer.transport.abort()
            return
        line.writers.add(up_writer)
        for source, sink, direction in (
            (reader, up_writer, Direction.TO_SERVER),
            (up_reader, writer, Direction.TO_CLIENT),
        ):
            pipe = asyncio.create_task(self._pump(line, source, sink, direction))
            self._pipes.add(pipe)
            pipe.add_done_callback(self._pipes.discard)

    async def _pump(
        self, line: _Line, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: Direction
    ) -> None:
        with suppress(OSError):
            while chunk := await source.read(CHUNK_BYTES if line.bytes_per_s is None else SLOW_CHUNK_BYTES):
                if line.bytes_per_s is not None:
                    await asyncio.sleep(line.latency_s + len(chunk) / line.bytes_per_s)
                await line.admitted(direction)
                sink.write(chunk)
                await sink.drain()
        await line.admitted(direction)
        sink.close()
        line.writers.discard(sink)


@asynccontextmanager
async def proxy(host: str, port: int) -> AsyncIterator[Proxy]:
    """A proxy in front of a server."""

    async def dial() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(host, port)

    async with proxying(dial) as made:
        yield made


@asynccontextmanager
async def proxying(dial: Dial) -> AsyncIterator[Proxy]:
    """A proxy in front of whatever ``dial`` connects to."""
    made = Proxy(dial)
    assert made.port
    try:
        yield made
    finally:
        await made.close()
