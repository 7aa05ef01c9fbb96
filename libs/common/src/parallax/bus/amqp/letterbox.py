"""Looking through the dead letters on the broker, which has no way to read a queue without taking from it.

Every letter is taken, judged, and what is kept goes back at the end. Before RabbitMQ 4.3 each look counts as a
delivery, and brokers drop what was delivered too often (RabbitMQ 4 after 20 times, unless a policy says otherwise),
so a letter that was looked at often is renewed: published again with its id, then acknowledged.
"""

from collections.abc import Callable, Mapping
from typing import Final

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from pamqp.commands import Basic

from parallax.bus import letters
from parallax.bus.amqp.confirm_batch import OutgoingMessage
from parallax.bus.amqp.connection import ReconnectingConnection, close_channel, loss_is_unavailable
from parallax.bus.amqp.publisher import Publisher
from parallax.bus.amqp.topology import Topology
from parallax.bus.letters import DeadLetter, Verdict
from parallax.contracts.routing import Queue
from parallax.errors import InvalidInputError

MAX_LETTERS: Final = 100_000
"""Looked at in one go, per queue. They are taken one by one and none is kept here, but nobody else sees them meanwhile:
at about 3,000 a second this takes half a minute, far below the broker's limit for unacknowledged deliveries."""
ALL: Final = 0
"""As a delivery tag: every delivery that is still unsettled on the channel."""
RENEW_AFTER: Final = 10
"""Looks; half of what RabbitMQ 4 allows by default."""


async def visit(
    connection: ReconnectingConnection,
    publisher: Publisher,
    topology: Topology,
    decide: Callable[[DeadLetter], Verdict],
) -> bool:
    """Show every dead letter to ``decide``, oldest first within each queue, and do as it says.

    Returns whether all of them were shown: ``decide`` did not stop, and no queue held more than ``MAX_LETTERS``.

    Raises:
        InvalidInputError: A letter to be replayed does not tell where it came from; it is kept.
    """
    complete, stopped = True, False

    def judge(letter: DeadLetter) -> Verdict:
        nonlocal stopped
        verdict = decide(letter)
        stopped = verdict is Verdict.STOP
        return verdict

    for queue in topology.queues:
        if queue.dead and not stopped:
            channel = await connection.channel(confirms=False)
            try:
                complete &= await _visit(channel, publisher, topology, queue, judge)
                with loss_is_unavailable("giving back the letters"):
                    await channel.basic_nack(ALL, multiple=True, requeue=True)
            finally:
                await close_channel(channel)
    return complete


async def _visit(
    channel: Channel,
    publisher: Publisher,
    topology: Topology,
    queue: Queue,
    decide: Callable[[DeadLetter], Verdict],
) -> bool:
    name = topology.name(queue)
    renewed: set[str] = set()
    for _ in range(MAX_LETTERS):
        with loss_is_unavailable(f"reading {name}"):
            message = await channel.basic_get(name)
        if not isinstance(message.delivery, Basic.GetOk):
            return True
        if message.header.properties.message_id in renewed:
            continue  # the copy of one that was judged already
        letter = read_letter(message, queue, topology.namespace)
        verdict = decide(letter)
        if verdict is Verdict.STOP:
            return False
        if verdict is Verdict.REPLAY:
            await publisher.send(_replay(letter, topology))
        elif verdict is Verdict.KEEP:
            if not _looked_at_often(message):
                continue
            renewed.add(letter.id)
            await publisher.send(_renewal(letter, name))
        assert message.delivery.delivery_tag is not None
        with loss_is_unavailable(f"taking a letter out of {name}"):
            await channel.basic_ack(message.delivery.delivery_tag)
    return False


def read_letter(message: DeliveredMessage, kept_in: Queue, namespace: str) -> DeadLetter:
    """What a message in a queue of dead letters tells, whether our bus or the broker itself put it there."""
    properties = message.header.properties
    headers = properties.headers or {}
    own = letters.kept_headers(headers)
    died = _death(headers)
    queue = own.pop(letters.QUEUE_HEADER, None) or _without(namespace, died.get("queue"))
    key = own.pop(letters.KEY_HEADER, None) or message.routing_key
    at = own.pop(letters.TIME_HEADER, None) or died.get("time")
    reason = own.pop(letters.REASON_HEADER, None) or f"the broker gave it up: {died.get('reason', 'no reason known')}"
    return DeadLetter(
        id=letters.letter_id(properties.message_id, message.body),
        kept_in=kept_in.name,
        queue=None if queue is None else str(queue),
        key=None if key is None else str(key),
        reason=str(reason),
        dead_at=None if at is None else str(at),
        body=message.body,
        headers=own,
        reply_to=properties.reply_to,
        correlation_id=properties.correlation_id,
    )


def _death(headers: Mapping[str, object]) -> Mapping[str, object]:
    """The latest entry of what the broker writes when it dead-letters by policy."""
    deaths = headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict):
        return deaths[0]
    return {}


def _without(namespace: str, name: object) -> str | None:
    return name.removeprefix(f"{namespace}.") if isinstance(name, str) else None


def _looked_at_often(message: DeliveredMessage) -> bool:
    count = (message.header.properties.headers or {}).get("x-delivery-count")
    return isinstance(count, int) and count >= RENEW_AFTER


def _replay(letter: DeadLetter, topology: Topology) -> OutgoingMessage:
    queue = topology.find(letter.queue or "")
    if queue is None:
        raise InvalidInputError(
            f"dead letter {letter.id} came from {letter.queue or 'an unknown queue'}, which this installation does not "
            f"have: it can only be dropped"
        )
    return OutgoingMessage(
        "",
        topology.name(queue),
        letter.body,
        headers={**letter.headers, **_text(letters.KEY_HEADER, letter.key)},
        reply_to=letter.reply_to,
        correlation_id=letter.correlation_id,
    )


def _renewal(letter: DeadLetter, name: str) -> OutgoingMessage:
    return OutgoingMessage(
        "",
        name,
        letter.body,
        headers={
            **letter.headers,
            letters.REASON_HEADER: letter.reason,
            **_text(letters.QUEUE_HEADER, letter.queue),
            **_text(letters.KEY_HEADER, letter.key),
            **_text(letters.TIME_HEADER, letter.dead_at),
        },
        reply_to=letter.reply_to,
        correlation_id=letter.correlation_id,
        message_id=letter.id,
    )


def _text(name: str, value: str | None) -> dict[str, str]:
    return {} if value is None else {name: value}
