"""What leaves a service for the broker: in one piece what belongs together, and with numbers that stay right."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiormq.channel import Channel

from parallax.bus.amqp import publisher
from parallax.bus.amqp.confirm_batch import ConfirmBatch, OutgoingMessage
from parallax.bus.amqp.transport import GatheringWriter
from parallax.errors import UnavailableError


class Socket:
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.ended: list[str] = []

    def write(self, data: bytes) -> None:
        self.written.append(bytes(data))

    def write_eof(self) -> None:
        self.ended.append("eof")

    def close(self) -> None:
        self.ended.append("closed")

    def abort(self) -> None:
        self.ended.append("aborted")

    def get_extra_info(self, name: str) -> None:
        del name

    def is_closing(self) -> bool:
        return bool(self.ended)


def writer_on(socket: Socket) -> GatheringWriter:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    return GatheringWriter(cast("Any", socket), protocol, reader, loop)


async def test_what_is_written_in_one_turn_leaves_in_one_piece() -> None:
    socket = Socket()
    writer = writer_on(socket)
    for piece in (b"a", b"b", b"c"):
        writer.write(piece)
    assert socket.written == []
    await asyncio.sleep(0)
    assert socket.written == [b"abc"]
    writer.write(b"d")
    await asyncio.sleep(0)
    assert socket.written == [b"abc", b"d"]
    writer.close()


async def test_several_pieces_written_at_once_keep_their_place() -> None:
    socket = Socket()
    writer = writer_on(socket)
    writer.write(b"a")
    writer.writelines([b"b", b"c"])
    writer.write(b"d")
    await asyncio.sleep(0)
    assert socket.written == [b"abcd"]
    writer.close()


async def test_a_reset_drops_what_was_not_written() -> None:
    socket = Socket()
    writer = writer_on(socket)
    writer.write(b"given up")
    writer.reset()
    await asyncio.sleep(0)
    assert (socket.written, socket.ended) == ([], ["aborted"])


@pytest.mark.parametrize("end", ["drain", "write_eof", "close"])
async def test_nothing_is_kept_back_at_the_end(end: str) -> None:
    socket = Socket()
    writer = writer_on(socket)
    writer.write(b"last words")
    done = getattr(writer, end)()
    if end == "drain":
        await done
    assert socket.written == [b"last words"]
    writer.close()


def channel_with(queue: "asyncio.Queue[Any]") -> Channel:
    """As much of a channel as a window needs."""
    loop = asyncio.get_running_loop()
    channel = SimpleNamespace(
        lock=asyncio.Lock(),
        loop=loop,
        number=1,
        delivery_tag=41,
        confirmations={},
        message_id_delivery_tag={},
        max_content_size=1000,
        write_queue=queue,
        create_future=loop.create_future,
    )
    return cast("Channel", channel)


def outgoing(count: int, size: int = 10) -> list[OutgoingMessage]:
    return [OutgoingMessage("exchange", f"key.{number}", b"x" * size) for number in range(count)]


def allowed() -> None:
    """Writing is allowed."""


async def test_nothing_is_written_once_writing_is_forbidden() -> None:
    queue: asyncio.Queue[Any] = asyncio.Queue()
    channel = channel_with(queue)

    def forbidden() -> None:
        raise UnavailableError("blocked")

    with pytest.raises(UnavailableError):
        await ConfirmBatch(channel, outgoing(3)).write(forbidden)
    assert queue.empty()
    assert (channel.delivery_tag, channel.confirmations) == (41, {})


async def test_a_batch_that_never_left_takes_back_its_numbers() -> None:
    queue: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)
    queue.put_nowait("the connection takes nothing")
    channel = channel_with(queue)
    batch = ConfirmBatch(channel, outgoing(3))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await batch.write(allowed)
    assert batch._answered.done(), "the channel forgets only what is done"
    assert channel.delivery_tag == 41, "the broker counts what it has seen"
    assert channel.confirmations == {}
    assert channel.message_id_delivery_tag == {}


async def test_a_batch_ends_when_each_message_was_answered() -> None:
    queue: asyncio.Queue[Any] = asyncio.Queue()
    channel = channel_with(queue)
    batch = ConfirmBatch(channel, outgoing(3))
    await batch.write(allowed)
    answers = asyncio.create_task(batch.answers())
    await queue.get()
    assert list(channel.confirmations) == [42, 43, 44]
    for tag in (44, 42):
        channel.confirmations[tag].set_result(None)
    await asyncio.sleep(0)
    assert not answers.done()
    assert [message.key for message in batch.undelivered] == ["key.1"]
    channel.confirmations[43].set_result(None)
    await answers
    assert batch.undelivered == []
    assert channel.message_id_delivery_tag == {}


async def test_a_message_that_the_broker_cannot_store_is_an_error() -> None:
    queue: asyncio.Queue[Any] = asyncio.Queue()
    channel = channel_with(queue)
    batch = ConfirmBatch(channel, outgoing(2))
    await batch.write(allowed)
    answers = asyncio.create_task(batch.answers())
    await queue.get()
    channel.confirmations[42].set_result(None)
    channel.confirmations[43].set_exception(ConnectionError("nack"))
    with pytest.raises(ConnectionError):
        await answers


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (0, 1, []),
        (1, 1, [1]),
        (publisher.BATCH, 1, [publisher.BATCH]),
        (publisher.BATCH + 1, 1, [publisher.BATCH, 1]),
        (3, publisher.BATCH_BYTES // 2, [2, 1]),
        (2, 2 * publisher.BATCH_BYTES, [1, 1]),
    ],
)
def test_batches_are_bounded(count: int, size: int, expected: list[int]) -> None:
    messages = outgoing(count, size)
    batches = publisher.batches(messages)
    assert [len(batch) for batch in batches] == expected
    assert [message for batch in batches for message in batch] == messages
