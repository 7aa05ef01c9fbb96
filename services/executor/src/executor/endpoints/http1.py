"""HTTP/1.1 for calls that may have to be aborted: h11 over asyncio's streams, with a pool of idle connections.

Why not a general client: aborting is what an executor must do fast, three hundred calls at once, and a call must cost
little when the model answers at once. Here an abort is one system call and a call is a quarter of the work; see
``docs/adr/0006-an-http-client-that-hangs-up.md``.
"""

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import h11

READ_BYTES: Final = 65_536
MAX_HEADER_BYTES: Final = 65_536
HAPPY_EYEBALLS_S: Final = 0.25
"""RFC 8305: wait before the other address family is tried too."""

Headers = Sequence[tuple[str, str]]


class ConnectError(Exception):
    """There is no connection to be had: refused, not resolved, not trusted, or not in time."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.cause = cause


class BrokenError(Exception):
    """The connection or the protocol broke in the middle of an exchange."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.cause = cause


class _Connection:
    """One connection, used by one exchange at a time."""

    __slots__ = ("idle_since", "protocol", "reader", "writer")

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.protocol = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER_BYTES)
        self.idle_since = 0.0

    @property
    def usable(self) -> bool:
        """Whether the other side has not hung up."""
        return not (self.reader.at_eof() or self.writer.transport.is_closing())

    def abort(self) -> None:
        """Hang up at once: the peer is told before this returns, the rest is cleared away by the event loop."""
        connected = self.writer.get_extra_info("socket")
        if connected is not None:
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)
        self.writer.transport.abort()


class Exchange:
    """A response whose body is still to be read. ``release`` must be called, whatever happened."""

    __slots__ = ("_client", "_connection", "headers", "status")

    def __init__(self, client: "Client", connection: _Connection, response: h11.Response) -> None:
        self._client = client
        self._connection = connection
        self.status: int = response.status_code
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
        """By lower-case name."""

    async def read(self) -> bytes:
        """The next part of the body; empty at its end.

        Raises:
            BrokenError: It breaks off.
        """
        event = await _next_event(self._connection)
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    def release(self) -> None:
        """Keep the connection when the body was read to its end, hang up otherwise."""
        self._client.take_back(self._connection)


class Client:
    """Sends requests to one server, given as the start of an ``http`` or ``https`` URL."""

    def __init__(self, base_url: str, *, connect_timeout_s: float, keepalive_s: float) -> None:
        parts = urlsplit(base_url)
        self.origin = (parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
        self.base_path = parts.path.rstrip("/")
        self._authority = parts.netloc.rpartition("@")[2]
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._connect_timeout_s = connect_timeout_s
        self._keepalive_s = keepalive_s
        self._idle: deque[_Connection] = deque()
        self._pruning: asyncio.TimerHandle | None = None
        self._busy: set[_Connection] = set()
        self._closed = False

    async def send(self, method: str, target: str, headers: Headers, body: bytes = b"") -> Exchange:
        """Send a request and wait for the head of its response. A cancelled wait hangs up.

        Raises:
            ConnectError: There is no connection.
            BrokenError: It broke.
        """
        connection = self._reusable() or await self._connect()
        self._busy.add(connection)
        try:
            protocol = connection.protocol
            length = [("Content-Length", str(len(body)))] if body else []
            request = h11.Request(method=method, target=target, headers=[("Host", self._authority), *headers, *length])
            data = protocol.send(request)
            if body:
                data += protocol.send(h11.Data(data=body))
            connection.writer.write(data + protocol.send(h11.EndOfMessage()))
            await connection.writer.drain()
            while not isinstance(event := await _next_event(connection), h11.Response):
                pass  # informational responses say nothing about the call
        except BaseException as error:
            self._busy.discard(connection)
            connection.abort()
            if isinstance(error, OSError | h11.LocalProtocolError):
                raise BrokenError(error) from error
            raise
        return Exchange(self, connection, event)

    def take_back(self, connection: _Connection) -> None:
        """Keep a connection for the next exchange if this one went to its end."""
        self._busy.discard(connection)
        protocol = connection.protocol
        finished = protocol.our_state is h11.DONE and protocol.their_state is h11.DONE
        if self._closed or not finished or not connection.usable:
            connection.abort()
            return
        protocol.start_next_cycle()
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.append(connection)
        if self._pruning is None:
            self._pruning = loop.call_later(self._keepalive_s, self._prune)

    async def close(self) -> None:
        """Hang up everywhere, also in the middle of exchanges."""
        self._closed = True
        if self._pruning is not None:
            self._pruning.cancel()
        for connection in (*self._idle, *self._busy):
            connection.abort()
        self._idle.clear()
        await asyncio.sleep(0)  # lets the event loop close the sockets

    def _reusable(self) -> _Connection | None:
        """The connection that was used last, if one is fresh enough not to be dropped by the server just now."""
        oldest = asyncio.get_running_loop().time() - self._keepalive_s
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since >= oldest:
                return connection
            connection.abort()
        return None

    def _prune(self) -> None:
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._keepalive_s
        while self._idle and self._idle[0].idle_since <= oldest:
            self._idle.popleft().abort()
        self._pruning = loop.call_later(self._keepalive_s, self._prune) if self._idle else None

    async def _connect(self) -> _Connection:
        _, host, port = self.origin
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=self._tls, happy_eyeballs_delay=HAPPY_EYEBALLS_S
                )
        except (OSError, UnicodeError) as error:  # TimeoutError and every TLS error are OSErrors
            raise ConnectError(error) from error
        return _Connection(reader, writer)


async def _next_event(connection: _Connection) -> object:
    """The next event of a response.

    Raises:
        BrokenError: The connection or the protocol broke.
    """
    try:
        while (event := connection.protocol.next_event()) is h11.NEED_DATA:
            connection.protocol.receive_data(await connection.reader.read(READ_BYTES))
    except (OSError, h11.ProtocolError) as error:
        raise BrokenError(error) from error
    return event
