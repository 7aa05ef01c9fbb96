"""The states of a reader of a stream, which never misses an entry.

::

    ATTACHING ──Attached──▶ CATCHING_UP ──Entry with its own marker──▶ LIVE
        ▲ │ Failed               │ Failed, Lost, Silent, another entry   │ Lost
        │ ▼                      ▼ at its position                       ▼
        └─────── PauseOver ──── LOST ◀───────────────────────────────────┘

    Close, from any state, and the last failed attempt of the start ──▶ CLOSED

It resumes *at* the last entry it handled, to see that it is still the same one: a broker that lost its disk numbers
entries from 0 again. When the entry is another one, or when not even its own marker arrives, it forgets its position
and reads from the first entry. It is LIVE once it has read a marker of its own, which it publishes after it attached.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

START_ATTEMPTS: Final = 3
"""Failed attempts to reach the fence before the start is reported as failed."""


class Phase(Enum):
    """What the reader is doing."""

    ATTACHING = "attaching"
    CATCHING_UP = "catching up"
    """It reads, and has not yet read its own marker."""
    LIVE = "live"
    LOST = "lost"
    """It pauses before it attaches again."""
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Position:
    """The last entry read: its number, and what tells it from another one with that number."""

    offset: int
    identity: str


@dataclass(frozen=True, slots=True)
class StreamState:
    """A reader; ``attempt`` counts the channels that were begun."""

    phase: Phase
    attempt: int
    name: str
    """Unlike that of any other reader: its markers begin with it."""
    position: Position | None = None
    verified: bool = True
    """Whether the entry at ``position`` was seen to be the same one on this channel."""
    starts_left: int | None = START_ATTEMPTS
    """Attempts left to the start; ``None`` once it succeeded."""

    @property
    def marker(self) -> str:
        """The token that this attempt publishes and waits for."""
        return f"{self.name}-{self.attempt}"


# --- events


@dataclass(frozen=True, slots=True)
class Attached:
    """The broker delivers entries."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt to attach, or to publish the marker, failed."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry arrived; ``marker`` is its token when it is a marker, of whichever reader."""

    attempt: int
    offset: int
    identity: str
    marker: str | None = None


@dataclass(frozen=True, slots=True)
class Silent:
    """Nothing arrived for a while."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The channel or the connection ended, or the broker cancelled the consumer."""

    attempt: int


@dataclass(frozen=True, slots=True)
class PauseOver:
    """The pause after a loss ended."""


@dataclass(frozen=True, slots=True)
class Close:
    """Nothing is wanted any more."""


Event = Attached | Failed | Entry | Silent | Lost | PauseOver | Close


# --- actions


@dataclass(frozen=True, slots=True)
class Attach:
    """Declare the stream and read it on a new channel, from an offset or from the first entry."""

    attempt: int
    offset: int | None


@dataclass(frozen=True, slots=True)
class PublishMarker:
    """Publish a marker with this token."""

    token: str


@dataclass(frozen=True, slots=True)
class Handle:
    """Give the entry to the handler."""


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Acknowledge the entry, so that the broker sends more."""


@dataclass(frozen=True, slots=True)
class AbandonAttempt:
    """Stop the attempt that is under way and close what it opened."""


@dataclass(frozen=True, slots=True)
class Discard:
    """Close the channel."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Report ``PauseOver`` after a while."""


@dataclass(frozen=True, slots=True)
class CancelPause:
    """Stop the pause."""


Action = Attach | PublishMarker | Handle | Acknowledge | AbandonAttempt | Discard | Pause | CancelPause
Step = tuple[StreamState, tuple[Action, ...]]

READING = (Phase.ATTACHING, Phase.CATCHING_UP, Phase.LIVE)


def begin(name: str) -> Step:
    """The first attempt of the reader ``name``."""
    return StreamState(Phase.ATTACHING, 1, name), (Attach(1, None),)


def transition(state: StreamState, event: Event) -> Step:  # noqa: PLR0911 - one for each line of the table
    """The reader after an event, and what has to be done."""
    match event:
        case Close():
            return _close(state)
        case PauseOver():
            return _attach(state) if state.phase is Phase.LOST else (state, ())
        case _ if event.attempt != state.attempt:
            return state, ()
        case Attached():
            if state.phase is Phase.ATTACHING:
                return replace(state, phase=Phase.CATCHING_UP), (PublishMarker(state.marker),)
            return state, () if state.phase in READING else (Discard(),)
        case Failed() | Lost():
            return _lose(state) if state.phase in READING else (state, ())
        case Silent():
            # Where we read nothing is written: the stream has fewer entries than it had.
            return _lose(replace(state, position=None)) if state.phase is Phase.CATCHING_UP else (state, ())
        case Entry():
            return _read(state, event) if state.phase in READING else (state, ())


def _attach(state: StreamState) -> Step:
    attempt, position = state.attempt + 1, state.position
    offset = None if position is None else position.offset
    following = replace(state, phase=Phase.ATTACHING, attempt=attempt, verified=position is None)
    return following, (Attach(attempt, offset),)


def _read(state: StreamState, entry: Entry) -> Step:
    position = state.position
    if position is not None and not state.verified:
        if entry.offset == position.offset and entry.identity != position.identity:
            return _lose(replace(state, position=None))
        state = replace(state, verified=True)
    if position is not None and entry.offset <= position.offset:
        return state, (Acknowledge(),)
    read = replace(state, position=Position(entry.offset, entry.identity))
    if entry.marker is None:
        return read, (Handle(), Acknowledge())
    if entry.marker == state.marker and state.phase is Phase.CATCHING_UP:
        return replace(read, phase=Phase.LIVE, starts_left=None), (Acknowledge(),)
    return read, (Acknowledge(),)


def _lose(state: StreamState) -> Step:
    left = None if state.starts_left is None else state.starts_left - 1
    if left == 0:
        return replace(state, phase=Phase.CLOSED, starts_left=0), (Discard(),)
    return replace(state, phase=Phase.LOST, starts_left=left), (Discard(), Pause())


def _close(state: StreamState) -> Step:
    closed = replace(state, phase=Phase.CLOSED)
    match state.phase:
        case Phase.ATTACHING | Phase.CATCHING_UP:
            return closed, (AbandonAttempt(), Discard())
        case Phase.LIVE:
            return closed, (Discard(),)
        case Phase.LOST:
            return closed, (CancelPause(),)
        case Phase.CLOSED:
            return state, ()
