"""Several messages written to a confirm channel in one piece, and what became of each.

The protocol layer publishes one message at a time, with a task switch, two timers and a system call for each. Here
the same frames are written together, and the numbers by which the broker confirms are entered into the channel's own
tables (``delivery_tag``, ``confirmations``, ``message_id_delivery_tag``), so that its reader does the rest.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Final
from uuid import uuid4

from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from aiormq.exceptions import PublishError
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from parallax.contracts.messages import Message

PERSISTENT: Final = 2

_ID_PREFIX: Final = uuid4().hex
_IDS: Final = count()


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message on its way to the broker."""

    exchange: str
    key: str
    body: bytes
    mandatory: bool = True
    headers: Mapping[str, object] | None = None
    reply_to: str | None = None
    correlation_id: str | None = None
    expiration_ms: str | None = None
    message_id: str | None = None
    """Set only to keep a dead letter's id; otherwise a fresh one, because a repeated id confuses returned messages."""
    message: Message | None = None
    """The message of the contract that this carries, if it is one."""


class ConfirmBatch:
    """Messages that are written and confirmed together: ``write`` once, then await ``answers``."""

    def __init__(self, channel: Channel, messages: Sequence[OutgoingMessage]) -> None:
        self._channel = channel
        self._messages = messages
        self._undelivered = dict(enumerate(messages))
        self._answers = 0
        self._refusal: BaseException | None = None
        self._answered: asyncio.Future[None] = channel.create_future()
        """Fails with the channel, as everything that the channel made."""

    @property
    def undelivered(self) -> list[OutgoingMessage]:
        """Those that no queue is known to have: returned, or not confirmed."""
        return list(self._undelivered.values())

    async def write(self, check: Callable[[], None]) -> None:
        """Write the messages. When this raises, nothing of them was written and nothing will be.

        ``check`` is called at the last moment before, and raises if they must not be written any more.

        Raises:
            AMQPError: The channel was lost.
        """
        try:
            async with self._channel.lock:
                check()
                await self._put()
        except BaseException:
            self._answered.cancel()  # the channel keeps what is not done for as long as it lives
            raise

    async def answers(self) -> None:
        """Wait until the broker has answered for each message. The wait can be repeated after a cancellation.

        Raises:
            DeliveryError: The broker could not store one of them.
            AMQPError: The channel was lost before it answered for all.
        """
        await asyncio.shield(self._answered)
        if self._refusal is not None:
            raise self._refusal

    def forget(self) -> None:
        """Wait no more: the channel keeps what is not done for as long as it lives."""
        self._answered.cancel()

    async def _put(self) -> None:
        channel, before = self._channel, self._channel.delivery_tag
        ids = [message.message_id or f"{_ID_PREFIX}-{next(_IDS):x}" for message in self._messages]
        frames: list[Any] = []
        for index, (message, message_id) in enumerate(zip(self._messages, ids, strict=True)):
            channel.delivery_tag += 1
            confirmation: asyncio.Future[Any] = channel.loop.create_future()
            confirmation.add_done_callback(partial(self._note, index, message_id, channel.delivery_tag))
            channel.confirmations[channel.delivery_tag] = confirmation
            channel.message_id_delivery_tag[message_id] = channel.delivery_tag
            frames += _frames(message, message_id, channel.max_content_size)
        try:
            await channel.write_queue.put(ChannelFrame.marshall(channel_number=channel.number, frames=frames))
        except BaseException:
            # The broker has seen none of it: the next number it gives is still the first of these.
            channel.delivery_tag = before
            for tag, message_id in enumerate(ids, before + 1):
                channel.confirmations.pop(tag, None)
                channel.message_id_delivery_tag.pop(message_id, None)
            raise

    def _note(self, index: int, message_id: str, tag: int, confirmation: "asyncio.Future[Any]") -> None:
        """Take in what the broker answered for one message."""
        if self._channel.message_id_delivery_tag.get(message_id) == tag:
            del self._channel.message_id_delivery_tag[message_id]
        error = confirmation.exception()
        if error is None:
            del self._undelivered[index]
        elif not isinstance(error, PublishError):
            self._refusal = error
        self._answers += 1
        if self._answers == len(self._messages) and not self._answered.done():
            self._answered.set_result(None)


def _frames(message: OutgoingMessage, message_id: str, longest: int) -> list[Any]:
    properties = Basic.Properties(
        content_type="application/json",
        delivery_mode=PERSISTENT,
        message_id=message_id,
        headers=dict(message.headers) if message.headers else None,  # type: ignore[arg-type]
        reply_to=message.reply_to,
        correlation_id=message.correlation_id,
        expiration=message.expiration_ms,
    )
    return [
        Basic.Publish(exchange=message.exchange, routing_key=message.key, mandatory=message.mandatory),
        ContentHeader(properties=properties, body_size=len(message.body)),
        *(ContentBody(message.body[start : start + longest]) for start in range(0, len(message.body), longest)),
    ]
