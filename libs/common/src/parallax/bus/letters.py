"""Dead letters: what the bus writes on a message that nobody could handle, and where it sends it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from parallax.bus.port import MAX_DELIVERIES
from parallax.contracts.routing import Queue

REASON_HEADER: Final = "x-parallax-reason"
"""Why the message was given up: a sentence for people."""
QUEUE_HEADER: Final = "x-parallax-queue"
"""The queue it was taken from, without the namespace."""
KEY_HEADER: Final = "x-parallax-key"
"""The routing key it was published with."""
TIME_HEADER: Final = "x-parallax-dead-at"
"""When it was given up, RFC 3339."""

BROKER_HEADERS: Final = ("x-delivery-count", "x-acquired-count", "x-death", "x-first-death-", "x-last-death-")
"""Prefixes of what the broker itself writes on a message."""

BROKER_DELIVERY_LIMIT: Final = 5 * MAX_DELIVERIES
"""The limit set as a policy: far above our own, so that it is the bus that writes the reason on a dead letter."""

MAX_REASON_LENGTH: Final = 2_000
"""Headers travel with the message and are kept: a reason is prose, not a dump."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message that nobody could handle."""

    id: str
    """Its AMQP message id, which stays the same until it is replayed or dropped. A foreign message that the broker
    itself dead-lettered may have none: then ``sha256-`` and the first 16 digits of the body's hash."""
    kept_in: str
    """The queue of dead letters that holds it: ``dead.letters`` or ``dead.executions``."""
    queue: str | None
    """The queue it was taken from; ``None`` when nothing tells."""
    key: str | None
    """The routing key it was published with."""
    reason: str
    dead_at: str | None
    body: bytes
    headers: Mapping[str, object]
    """The publisher's own headers."""
    reply_to: str | None = None
    correlation_id: str | None = None


class Verdict(Enum):
    """What becomes of a dead letter that was looked at."""

    KEEP = "keep"
    REPLAY = "replay"
    """It goes back to the queue it was taken from, as if for the first time."""
    DROP = "drop"
    STOP = "stop"
    """It is kept, and no other one is looked at."""


def letter_id(message_id: str | None, body: bytes) -> str:
    """The id of a dead letter, see :attr:`DeadLetter.id`."""
    return message_id or f"sha256-{hashlib.sha256(body).hexdigest()[:16]}"


def dead_key(queue: Queue, key: str) -> str:
    """The routing key under which a message from ``queue`` goes to the dead-letter exchange.

    A message that reached its queue by one of the queue's own keys keeps that key, so that dead tasks are told
    from the rest. Anything else (published straight to the queue by a foreign client, or already dead once) is
    filed as unreadable.
    """
    return key if key in queue.keys and not queue.dead else f"unreadable.{queue.name}"


def kept_headers(headers: Mapping[str, object]) -> dict[str, object]:
    """The publisher's own headers: plain values, without what the broker counted and noted about the lost life.

    A copy that still said ``x-delivery-count: 20`` would be given up again on arrival.
    """
    return {
        name: value
        for name, value in headers.items()
        if isinstance(value, str | int | float) and not name.startswith(BROKER_HEADERS)
    }


def clean_reason(reason: str) -> str:
    """A reason that fits into a header: bounded, and free of the lone surrogates that UTF-8 refuses."""
    return reason[:MAX_REASON_LENGTH].encode("utf-8", "replace").decode()


def delivery_bound(headers: Mapping[str, object]) -> int:
    """After how many deliveries a message is given up.

    One that the broker dead-lettered brings its old count along (from RabbitMQ 4 on), and has a life of its own.
    """
    return MAX_DELIVERIES + (BROKER_DELIVERY_LIMIT if "x-death" in headers else 0)


def too_many_deliveries(count: int) -> str:
    """The reason written on a message that kept coming back."""
    return f"delivered {count} times without being settled"


def matches(pattern: str, key: str) -> bool:
    """Whether a topic pattern (``*`` one word, ``#`` any number of words) covers a routing key."""
    return _match(pattern.split("."), key.split("."))


def _match(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    head, rest = pattern[0], pattern[1:]
    if head == "#":
        return any(_match(rest, words[skip:]) for skip in range(len(words) + 1))
    return bool(words) and head in ("*", words[0]) and _match(rest, words[1:])
