"""The executor's HTTP client against a server that does as the test says, byte by byte."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from executor.endpoints.http1 import BrokenError, Client, ConnectError

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def client_of(peer: Peer, keepalive_s: float = 3.0) -> AsyncIterator[tuple[Client, list[int]]]:
    """A client of a server whose connections are handled by ``peer``, and the number of each connection made."""
    connections: list[int] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(len(connections))
        try:
            await peer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = Client(f"http://127.0.0.1:{port}/v1", connect_timeout_s=5.0, keepalive_s=keepalive_s)
    try:
        yield client, connections
    finally:
        await client.close()
        server.close()


async def fetch(client: Client) -> tuple[int, bytes]:
    exchange = await client.send("POST", "/v1/x", [("X-Test", "1")], b"{}")
    try:
        body = b""
        while part := await exchange.read():
            body += part
        return exchange.status, body
    finally:
        exchange.release()


async def head_of(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(2)
    return head


async def polite(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers every request of a connection."""
    while True:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")


async def test_a_connection_is_used_again_when_its_answer_was_read_to_the_end() -> None:
    async with client_of(polite) as (client, connections):
        for _ in range(5):
            assert await fetch(client) == (200, b"hello")
    assert connections == [0]


async def test_exchanges_at_the_same_time_have_connections_of_their_own() -> None:
    async with client_of(polite) as (client, connections):
        assert await asyncio.gather(*(fetch(client) for _ in range(8))) == [(200, b"hello")] * 8
    assert len(connections) == 8


async def test_an_answer_left_unread_costs_its_connection() -> None:
    hung_up = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await reader.read()
        hung_up.set()

    async with client_of(endless) as (client, _), asyncio.timeout(10):
        exchange = await client.send("POST", "/", [], b"{}")
        assert await exchange.read() == b"a"
        exchange.release()
        await hung_up.wait()


async def test_a_cancelled_wait_hangs_up() -> None:
    asked, hung_up = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        asked.set()
        await reader.read()
        hung_up.set()

    async with client_of(silent) as (client, _), asyncio.timeout(10):
        call = asyncio.create_task(fetch(client))
        await asked.wait()
        call.cancel()
        await hung_up.wait()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_a_connection_that_the_server_dropped_meanwhile_is_not_used() -> None:
    dropped = asyncio.Event()

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        dropped.set()

    async with client_of(once) as (client, connections), asyncio.timeout(10):
        await fetch(client)
        await dropped.wait()
        await asyncio.sleep(0.05)  # for the end of the stream to cross the loopback interface
        assert await fetch(client) == (200, b"hello")
    assert len(connections) == 2


async def test_idle_connections_are_closed_before_the_server_would() -> None:
    closed = asyncio.Event()

    async def watching(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        await reader.read()
        closed.set()

    async with client_of(watching, keepalive_s=0.1) as (client, _), asyncio.timeout(10):
        await fetch(client)
        await closed.wait()


async def test_closing_hangs_up_in_the_middle_of_exchanges() -> None:
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        asked.set()
        await reader.read()

    async with client_of(silent) as (client, _), asyncio.timeout(10):
        call = asyncio.create_task(fetch(client))
        await asked.wait()
        await client.close()
        with pytest.raises(BrokenError):
            await call


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"this is not HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * 1_000_000 + b"\r\n\r\n",
    ],
    ids=["nothing", "not HTTP", "too short", "bad chunk", "endless headers"],
)
async def test_a_broken_answer_is_told_as_such(answer: bytes) -> None:
    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(answer)
        await writer.drain()

    async with client_of(broken) as (client, _), asyncio.timeout(10):
        with pytest.raises(BrokenError):
            await fetch(client)


async def test_a_name_that_does_not_resolve_is_no_connection() -> None:
    client = Client("http://nobody.invalid:80", connect_timeout_s=5.0, keepalive_s=1.0)
    with pytest.raises(ConnectError):
        await client.send("GET", "/", [])
    await client.close()


async def test_a_server_without_the_expected_certificate_is_no_connection() -> None:
    async with client_of(polite) as (plain, _):
        secure = Client(f"https://127.0.0.1:{plain.origin[2]}", connect_timeout_s=5.0, keepalive_s=1.0)
        with pytest.raises(ConnectError):
            await secure.send("GET", "/", [])
        await secure.close()
