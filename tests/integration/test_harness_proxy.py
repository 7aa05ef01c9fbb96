"""The proxy that hurts connections does what its blows are named for."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress

import pytest

from tests.harness.proxy import Direction, Proxy, proxying

PATIENCE_S = 30.0
A_WHILE_S = 0.3
"""Long enough to see that nothing arrives."""


@pytest.fixture
async def between() -> AsyncIterator[Proxy]:
    """A proxy in front of a server that repeats what it hears."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while line := await reader.read(65_536):
                writer.write(line)
                await writer.drain()
        writer.close()

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(await asyncio.start_server(echo, "127.0.0.1", 0))
        port = server.sockets[0].getsockname()[1]
        yield await stack.enter_async_context(proxying(lambda: asyncio.open_connection("127.0.0.1", port)))


class Client:
    """A client of the echo behind a proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, line: bytes) -> None:
        self.writer.write(line)

    async def hears(self, line: bytes) -> None:
        async with asyncio.timeout(PATIENCE_S):
            assert await self.reader.readexactly(len(line)) == line

    async def hears_nothing(self) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(A_WHILE_S):
                await self.reader.read(1)

    async def is_cut_off(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionResetError):
                assert await self.reader.read(1) == b""


Connect = Callable[[Proxy, str], Awaitable[Client]]


@pytest.fixture
async def client() -> AsyncIterator[Connect]:
    """Connects as a named client of a proxy."""
    opened: list[Client] = []

    async def connect(through: Proxy, name: str) -> Client:
        opened.append(Client(*await asyncio.open_connection("127.0.0.1", through.listen(name))))
        return opened[-1]

    yield connect
    for each in opened:
        each.writer.close()
        with suppress(OSError):
            await each.writer.wait_closed()


async def test_each_client_is_hurt_alone(between: Proxy, client: Connect) -> None:
    one, other = await client(between, "one"), await client(between, "other")
    for each in (one, other):
        each.say(b"hello")
        await each.hears(b"hello")
    between.cut("one")
    await one.is_cut_off()
    other.say(b"still here")
    await other.hears(b"still here")
    between.refuse()
    await other.is_cut_off()
    await (await client(between, "one")).is_cut_off()
    between.admit()
    again = await client(between, "one")
    again.say(b"back")
    await again.hears(b"back")


@pytest.mark.parametrize("directions", [frozenset({Direction.TO_SERVER}), frozenset({Direction.TO_CLIENT})])
async def test_silence_keeps_connections_open_and_loses_nothing(
    between: Proxy, client: Connect, directions: frozenset[Direction]
) -> None:
    one, other = await client(between, "one"), await client(between, "other")
    between.silence("one", directions=directions)
    one.say(b"anybody?")
    new = await client(between, "one")
    new.say(b"nobody")
    other.say(b"yes")
    await other.hears(b"yes")
    await one.hears_nothing()
    between.speak("one")
    await one.hears(b"anybody?")
    await new.hears(b"nobody")


async def test_the_end_of_a_connection_is_not_forwarded_either(client: Connect) -> None:
    hung_up = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        hung_up.set()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with proxying(lambda: asyncio.open_connection("127.0.0.1", port)) as made:
            one = await client(made, "one")
            one.say(b"hello")
            made.silence()
            one.writer.close()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(A_WHILE_S):
                    await hung_up.wait()
            made.speak()
            async with asyncio.timeout(PATIENCE_S):
                await hung_up.wait()


async def test_a_slow_line_takes_its_time(between: Proxy, client: Connect) -> None:
    one, size_bytes = await client(between, "one"), 20_000
    between.slow("one", bytes_per_s=100_000, latency_s=0.01)
    began = asyncio.get_running_loop().time()
    one.say(b"x" * size_bytes)
    await one.hears(b"x" * size_bytes)
    assert asyncio.get_running_loop().time() - began > size_bytes / 100_000
    between.fast("one")
    one.say(b"y" * size_bytes)
    await one.hears(b"y" * size_bytes)
