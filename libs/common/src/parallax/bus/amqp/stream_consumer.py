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
from pydantic import ValidationError

from parallax.bus.amqp.connection import ReconnectingConnection
from parallax.bus.amqp.consumer_channel import ConsumerChannel, Pauses, attach, headers_of, tag_of
from parallax.bus.amqp.publisher import Publisher
from parallax.bus.amqp.states import stream_consumer as states
from parallax.bus.amqp.states.stream_consumer import Phase
from parallax.bus.amqp.topology import Topology
from parallax.contracts.messages import FenceMarker
from parallax.contracts.model import read
from parallax.contracts.routing import Queue
from parallax.errors import UnavailableError

log = logging.getLogger(__name__)

PREFETCH: Final = 500
"""Entries under way at once; a stream needs a bound, and replay is slow with a small one."""
FENCE_IDLE_S: Final = 3.0
"""Our marker comes back within milliseconds. With nothing at all for this long, we read where nothing is written."""
MARKER_KEYS: Final = "fence."
"""Routing keys of markers begin with this."""


class StreamConsumer:
    """See :class:`parallax.bus.port.Following`. Its states are those of ``states.stream_consumer``."""

    def __init__(
        self,
        connection: ReconnectingConnection,
        publisher: Publisher,
        topology: Topology,
        stream: Queue,
        handler: Callable[[bytes], None],
    ) -> None:
        self._connection = connection
        self._publisher = publisher
        self._topology = topology
        self._stream = stream
        self._handler = handler
        self._pauses = Pauses()
        self._state, self._first = states.begin(uuid4().hex)
        self._channel: ConsumerChannel | None = None
        self._failure: Exception = UnavailableError(f"the reader of {stream.name} was lost before the fence")
        self._effort: asyncio.Task[None] | None = None
        """The attempt to attach and to reach the fence, or the pause, that is under way."""
        self._arrived = asyncio.Event()
        self._settled = asyncio.Event()
        """Set while the reader is LIVE or CLOSED: the start has ended."""
        self._discarding: set[asyncio.Task[None]] = set()

    @property
    def live(self) -> bool:
        """Whether it has read all that was written before it (re)connected, and new entries arrive."""
        return self._state.phase is Phase.LIVE

    @property
    def position(self) -> int | None:
        """The offset of the last entry read."""
        return None if self._state.position is None else self._state.position.offset

    async def start(self) -> None:
        """Read up to the fence.

        Raises:
            UnavailableError: The broker did not let us, several times.
        """
        self._carry_out(self._first)
        try:
            await self._settled.wait()
        except BaseException:
            await self.close()
            raise
        if self._state.phase is Phase.CLOSED:
            await self.close()
            raise self._failure

    async def close(self) -> None:
        """See :meth:`parallax.bus.port.Following.close`."""
        self._handle(states.Close())
        effort = {self._effort} if self._effort is not None else set()
        while tasks := {task for task in (*effort, *self._discarding) if not task.done()}:
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- the machine

    def _handle(self, event: states.Event) -> tuple[states.Action, ...]:
        before = self._state
        self._state, actions = states.transition(before, event)
        if before.position is not None and self._state.position is None:
            log.warning("%s began again: reading it from the start", self._stream.name)
        match before.phase, self._state.phase:
            case Phase.LIVE, Phase.LOST:
                log.warning("the reader of %s was lost", self._stream.name)
            case Phase.CATCHING_UP, Phase.LIVE:
                log.info("the reader of %s has reached the fence", self._stream.name)
                self._pauses.reset()
            case _:
                pass
        if self._state.phase in (Phase.LIVE, Phase.CLOSED):
            self._settled.set()
        self._carry_out(actions)
        return actions

    def _carry_out(self, actions: tuple[states.Action, ...]) -> None:
        for action in actions:
            match action:
                case states.Attach(attempt, offset):
                    self._effort = asyncio.create_task(
                        self._attach(attempt, offset), name=f"follow {self._stream.name}"
                    )
                case states.PublishMarker(token):
                    attempt = self._state.attempt
                    self._effort = asyncio.create_task(self._reach_fence(attempt, token))
                case states.Pause():
                    self._effort = asyncio.create_task(self._pause(), name=f"follow {self._stream.name} again")
                case states.AbandonAttempt() | states.CancelPause():
                    if self._effort is not None:
                        self._effort.cancel()
                case states.Discard():
                    if self._channel is not None:
                        closing = asyncio.create_task(self._channel.close())
                        self._discarding.add(closing)
                        closing.add_done_callback(self._discarding.discard)
                        self._channel = None
                case states.Handle() | states.Acknowledge():
                    pass  # about the entry at hand, see _on_message

    async def _attach(self, attempt: int, offset: int | None) -> None:
        def on_message(channel: ConsumerChannel, message: DeliveredMessage) -> Any:
            return self._on_message(attempt, channel, message)

        try:
            self._channel = await attach(
                self._connection,
                self._topology,
                self._stream,
                prefetch=PREFETCH,
                on_message=on_message,
                on_end=lambda: self._handle(states.Lost(attempt)),
                arguments={"x-stream-offset": "first" if offset is None else offset},
            )
        except Exception as error:  # noqa: BLE001 - reported by the start, or logged
            self._fail(attempt, error)
        else:
            # A loss that came before this is not reported again.
            ended = self._channel.ended.is_set()
            self._handle(states.Failed(attempt) if ended else states.Attached(attempt))

    async def _reach_fence(self, attempt: int, token: str) -> None:
        """Publish the marker, and report when nothing at all arrives any more before it does."""
        try:
            await self._publisher.send(self._publisher.outgoing(FenceMarker(token=token)))
        except Exception as error:  # noqa: BLE001 - reported by the start, or logged
            self._fail(attempt, error)
            return
        while self._state.phase is Phase.CATCHING_UP and self._state.attempt == attempt:
            self._arrived.clear()
            try:
                async with asyncio.timeout(FENCE_IDLE_S):
                    await self._arrived.wait()
            except TimeoutError:
                self._handle(states.Silent(attempt))

    def _fail(self, attempt: int, error: Exception) -> None:
        self._failure = error
        if isinstance(error, UnavailableError):
            log.warning("the reader of %s cannot reach the fence: %s", self._stream.name, error)
        else:
            log.error("the reader of %s failed on a bug", self._stream.name, exc_info=error)
        self._handle(states.Failed(attempt))

    async def _pause(self) -> None:
        await self._pauses.wait()
        self._handle(states.PauseOver())

    # --- entries

    def _on_message(self, attempt: int, channel: ConsumerChannel, message: DeliveredMessage) -> Any:
        offset = headers_of(message)["x-stream-offset"]
        assert isinstance(offset, int)
        self._arrived.set()
        for action in self._handle(states.Entry(attempt, offset, identity(message), marker_of(message))):
            match action:
                case states.Handle():
                    self._hand_over(message)
                case states.Acknowledge():
                    return _acknowledge(channel, message)
                case _:
                    pass
        return None

    def _hand_over(self, message: DeliveredMessage) -> None:
        try:
            self._handler(message.body)
        except Exception:
            log.exception("the handler of stream %s raised; reading goes on", self._stream.name)


def identity(message: DeliveredMessage) -> str:
    """What tells an entry from another one at the same offset."""
    return f"{message.header.properties.message_id}:{hashlib.sha256(message.body).hexdigest()}"


def marker_of(message: DeliveredMessage) -> str | None:
    """The token of a marker; of one that cannot be read, something that no reader waits for."""
    if not (message.routing_key or "").startswith(MARKER_KEYS):
        return None
    try:
        return read(FenceMarker, message.body).token
    except ValidationError:
        return ""


async def _acknowledge(channel: ConsumerChannel, message: DeliveredMessage) -> None:
    with suppress(ChannelInvalidStateError):  # lost: another channel reads on from here
        await channel.channel.basic_ack(tag_of(message), wait=False)
