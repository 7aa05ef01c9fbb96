"""The states of one call of ``publish``, whose messages are written in batches and confirmed batch by batch.

::

    READY ──Written──▶ AWAITING ──Answered, more to write──▶ READY
      │                   │ │
      │ Refused           │ └─Answered, some returned──▶ DECLARING ──Declared──▶ READY (the second and last try)
      ▼                   ▼                                  │ Refused
    FAILED ◀── Lost, TimedOut, Nacked, CallerLeft            ▼
                                                           FAILED

What the caller learns follows from two facts alone. Nothing was delivered, and nothing that was written is unanswered:
``UNSENT``, repeating is harmless. Anything else that ends early: ``UNCONFIRMED``. A batch that is given up unanswered
always resets the socket, so that the broker cannot read it later.
"""

from dataclasses import dataclass, replace
from enum import Enum


class Phase(Enum):
    """Where the call is."""

    READY = "ready"
    """A batch is to be written, and nothing is unanswered."""
    AWAITING = "awaiting"
    """A batch was written, and the broker has not answered for each of its messages."""
    DECLARING = "declaring"
    """Some messages had no queue; the topology is declared again."""
    DELIVERED = "delivered"
    FAILED = "failed"


class Failure(Enum):
    """How a call failed."""

    UNSENT = "unsent"
    UNCONFIRMED = "unconfirmed"
    UNROUTABLE = "unroutable"


@dataclass(frozen=True, slots=True)
class PublishState:
    """One call; ``batches`` are still to be confirmed in this try, ``returned`` messages had no queue in it."""

    phase: Phase
    batches: int
    delivered: bool = False
    """Whether a queue has at least one message of the call."""
    returned: int = 0
    last_try: bool = False


# --- events


@dataclass(frozen=True, slots=True)
class Written:
    """The batch is on its way to the socket and cannot be called back."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was written: no connection, no channel, or a broker that blocks publishers."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The broker answered for every message of the batch: it has it, or there is no queue for it."""

    confirmed: int
    returned: int


@dataclass(frozen=True, slots=True)
class NoExchange:
    """The broker closed the channel, because the exchange of the batch is missing, before it confirmed any of it."""


@dataclass(frozen=True, slots=True)
class Nacked:
    """The broker answered for every message, and could not store one of them."""


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The answers did not come in time."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The channel or the connection ended before the answers."""


@dataclass(frozen=True, slots=True)
class CallerLeft:
    """The caller was cancelled; the answers may still come."""


@dataclass(frozen=True, slots=True)
class Declared:
    """The topology was declared; what had no queue is to be written in so many batches."""

    batches: int


Event = Written | Refused | Answered | NoExchange | Nacked | TimedOut | Lost | CallerLeft | Declared


# --- actions


@dataclass(frozen=True, slots=True)
class Write:
    """Write the next batch."""


@dataclass(frozen=True, slots=True)
class AwaitAnswers:
    """Wait for the broker's answers, for a bounded time."""


@dataclass(frozen=True, slots=True)
class Declare:
    """Declare the topology again."""


@dataclass(frozen=True, slots=True)
class Abort:
    """Reset the socket on which the batch was written."""


@dataclass(frozen=True, slots=True)
class AbortUnlessAnswered:
    """Wait for the answers without the caller; reset the socket when they do not come in time."""


@dataclass(frozen=True, slots=True)
class Succeed:
    """Return to the caller."""


@dataclass(frozen=True, slots=True)
class Fail:
    """Raise to the caller."""

    failure: Failure


Action = Write | AwaitAnswers | Declare | Abort | AbortUnlessAnswered | Succeed | Fail
Step = tuple[PublishState, tuple[Action, ...]]


def begin(batches: int) -> Step:
    """A call with so many batches."""
    if batches == 0:
        return PublishState(Phase.DELIVERED, 0), (Succeed(),)
    return PublishState(Phase.READY, batches), (Write(),)


def transition(state: PublishState, event: Event) -> Step:  # noqa: PLR0911 - one for each line of the table
    """The call after an event, and what has to be done."""
    match state.phase, event:
        case Phase.READY, Written():
            return replace(state, phase=Phase.AWAITING), (AwaitAnswers(),)
        case Phase.READY | Phase.DECLARING, Refused() | TimedOut() | Lost() | CallerLeft():
            return _fail(state, Failure.UNCONFIRMED if state.delivered else Failure.UNSENT)
        case Phase.AWAITING, Answered():
            return _answered(state, event)
        case Phase.AWAITING, NoExchange() if not state.last_try:
            return replace(state, phase=Phase.DECLARING), (Declare(),)
        case Phase.AWAITING, TimedOut():
            return _fail(state, Failure.UNCONFIRMED, Abort())
        case Phase.AWAITING, CallerLeft():
            return _fail(state, Failure.UNCONFIRMED, AbortUnlessAnswered())
        case Phase.AWAITING, Lost() | Nacked() | NoExchange():
            return _fail(state, Failure.UNCONFIRMED)
        case Phase.DECLARING, Declared(batches=batches):
            return replace(state, phase=Phase.READY, batches=batches, returned=0, last_try=True), (Write(),)
        case _:
            return state, ()


def _answered(state: PublishState, event: Answered) -> Step:
    now = replace(
        state,
        batches=state.batches - 1,
        delivered=state.delivered or event.confirmed > 0,
        returned=state.returned + event.returned,
    )
    if now.batches:
        return replace(now, phase=Phase.READY), (Write(),)
    if not now.returned:
        return replace(now, phase=Phase.DELIVERED), (Succeed(),)
    if now.last_try:
        return _fail(now, Failure.UNROUTABLE)
    return replace(now, phase=Phase.DECLARING), (Declare(),)


def _fail(state: PublishState, failure: Failure, *before: Action) -> Step:
    return replace(state, phase=Phase.FAILED), (*before, Fail(failure))
