"""A reader of a stream that never misses an entry: it resumes where it was, or begins again if the stream did."""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final
from uuid import uuid4

from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelInvalidStateError

from parallax.bus.amqp.consumption import Pauses, Session, headers_of, open_session, tag_of
from parallax.bus.amqp.link import Link, close_channel
from parallax.bus.amqp.publisher import Publisher
from parallax.bus.amqp.topology import Topology
from parallax.contracts.messages import FenceMarker, encode
from parallax.contracts.routing import Queue
from parallax.errors import UnavailableError

log = logging.getLogger(__name__)

PREFETCH: Final = 500
"""Entries under way at once; a stream needs a bound, and replay is slow with a small one."""
FENCE_IDLE_S: Final = 3.0
"""Our marker comes back within milliseconds. With nothing at all for this long, we read where nothing is written."""
START_ATTEMPTS: Final = 3
"""Failed attempts to reach the fence before the first reading is reported as failed."""


class AmqpFollowing:
    """A reader of one stream, kept alive by a task.

    It resumes *at* the last entry it handled, to see that it is still the same one: a broker that lost its disk
    numbers entries from 0 again. Then, or when not even its own marker arrives, it reads from the first entry.
    """

    def __init__(
        self,
        link: Link,
        publisher: Publisher,
        topology: Topology,
        stream: Queue,
        handler: Callable[[bytes], None],
    ) -> None:
        self._link = link
        self._publisher = publisher
        self._topology = topology
        self._stream = stream
        self._handler = handler
        self._session: Session | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._last: tuple[int, str] | None = None
        self._checked = True
        self._marker = b""
        self._fenced = asyncio.Event()
        self._arrived = asyncio.Event()

    @property
    def live(self) -> bool:
        """Whether it has read all that was written before it (re)connected, and new entries arrive."""
        return self._session is not None and not self._session.ended.is_set() and self._fenced.is_set()

    @property
    def position(self) -> int | None:
        """The offset of the last entry read."""
        return None if self._last is None else self._last[0]

    async def start(self) -> None:
        """Read up to the fence.

        Raises:
            UnavailableError: The broker did not let us.
        """
        pauses = Pauses()
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                session = await self._catch_up()
                break
            except UnavailableError:
                if attempt == START_ATTEMPTS:
                    raise
                await pauses.next()
        else:
            raise AssertionError("the last attempt returns or raises")
        self._supervisor = asyncio.create_task(self._supervise(session), name=f"follow {self._stream.name}")

    async def close(self) -> None:
        """See :meth:`parallax.bus.port.Following.close`."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        if self._session is not None:
            self._session.ended.set()
            await close_channel(self._session.channel)

    async def _supervise(self, session: Session) -> None:
        while True:
            await session.ended.wait()
            await close_channel(session.channel)
            log.warning("the reader of %s was lost", self._stream.name)
            pauses = Pauses()
            while True:
                await pauses.next()
                try:
                    session = await self._catch_up()
                    break
                except UnavailableError as error:
                    log.warning("the reader of %s is still lost: %s", self._stream.name, error)
            log.info("the reader of %s is back", self._stream.name)

    async def _catch_up(self) -> Session:
        """Attach where we were and read until our own marker comes by."""
        self._fenced.clear()
        self._checked = self._last is None
        marker = FenceMarker(token=uuid4().hex)
        self._marker = encode(marker)
        session = self._session = await open_session(
            self._link,
            self._topology,
            self._stream,
            prefetch=PREFETCH,
            on_message=self._on_message,
            arguments={"x-stream-offset": "first" if self._last is None else self._last[0]},
        )
        try:
            await self._publisher.send(self._publisher.outgoing(marker))
            await self._reach_fence(session)
        except BaseException:
            session.ended.set()
            await close_channel(session.channel)
            raise
        return session

    async def _reach_fence(self, session: Session) -> None:
        waits = {asyncio.create_task(event.wait()) for event in (self._fenced, session.ended)}
        try:
            while not self._fenced.is_set():
                self._arrived.clear()
                await asyncio.wait(waits, timeout=FENCE_IDLE_S, return_when=asyncio.FIRST_COMPLETED)
                if session.ended.is_set():
                    raise UnavailableError(f"the reader of {self._stream.name} was lost before the fence")
                if not self._fenced.is_set() and not self._arrived.is_set():
                    self._last = None
                    raise UnavailableError(f"{self._stream.name} is silent at our position: reading from the start")
        finally:
            for task in waits:
                task.cancel()

    def _on_message(self, session: Session, message: DeliveredMessage) -> Any:
        if session.ended.is_set():
            return None
        self._arrived.set()
        offset = headers_of(message)["x-stream-offset"]
        assert isinstance(offset, int)
        if not self._checked and self._last is not None:
            self._checked = True
            if offset == self._last[0] and identity(message) != self._last[1]:
                log.warning("%s began anew: reading it from the start", self._stream.name)
                self._last = None
                session.ended.set()
                return None
        if self._last is None or offset > self._last[0]:
            self._read(message)
            self._last = (offset, identity(message))
        return _acknowledge(session, message)

    def _read(self, message: DeliveredMessage) -> None:
        if message.body == self._marker:
            self._fenced.set()
        elif not (message.routing_key or "").startswith("fence."):
            try:
                self._handler(message.body)
            except Exception:
                log.exception("the handler of stream %s raised; reading goes on", self._stream.name)


def identity(message: DeliveredMessage) -> str:
    """What tells an entry from another one at the same offset."""
    return f"{message.header.properties.message_id}:{hashlib.sha256(message.body).hexdigest()}"


async def _acknowledge(session: Session, message: DeliveredMessage) -> None:
    with suppress(ChannelInvalidStateError):  # lost: the supervisor reads on from here on another channel
        await session.channel.basic_ack(tag_of(message), wait=False)
