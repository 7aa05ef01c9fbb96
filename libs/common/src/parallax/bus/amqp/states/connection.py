"""The states of one connection to the broker.

::

                 Failed               PauseOver
    CONNECTING ──────────▶ WAITING ───────────────▶ CONNECTING
        │ ▲
        │ │ Lost, GaveUp (the socket is aborted)
        ▼ │
       LIVE ◀──────────────▶ BLOCKED          Close, from any state ──▶ CLOSED
              Blocked, Unblocked

A connection that publishes sends a probe before it is LIVE. During a resource alarm the broker accepts connections and
says ``connection.blocked`` only after the first publish; without the probe that would be somebody's message. A BLOCKED
connection is kept, because it is the only one on which the broker will say that the alarm is over.
"""

from dataclasses import dataclass, replace
from enum import Enum


class Phase(Enum):
    """What can be done with the connection now."""

    CONNECTING = "connecting"
    """An attempt is under way; a caller waits for its end."""
    LIVE = "live"
    BLOCKED = "blocked"
    """Connected, but the broker reads no publishes: nothing may be written."""
    WAITING = "waiting"
    """The last attempt failed; callers fail with its reason until the next one begins."""
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """A connection; ``attempt`` counts the connections that were begun."""

    phase: Phase
    attempt: int
    reason: str = ""
    """Why it is BLOCKED or WAITING."""


# --- events


@dataclass(frozen=True, slots=True)
class Connected:
    """The attempt succeeded, its preparation and its probe included."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Blocked:
    """The broker said ``connection.blocked``."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Unblocked:
    """The broker said ``connection.unblocked``."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection ended, whatever the cause."""

    attempt: int


@dataclass(frozen=True, slots=True)
class GaveUp:
    """Something written on the connection was not confirmed in time."""

    attempt: int


@dataclass(frozen=True, slots=True)
class PauseOver:
    """The pause after a failure ended."""


@dataclass(frozen=True, slots=True)
class Close:
    """The service closes its bus."""


Event = Connected | Failed | Blocked | Unblocked | Lost | GaveUp | PauseOver | Close


# --- actions


@dataclass(frozen=True, slots=True)
class Connect:
    """Begin an attempt under this number."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Abort:
    """Reset the socket, so that nothing written and unread can still be delivered."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the connection in good order."""


@dataclass(frozen=True, slots=True)
class AbandonAttempt:
    """Stop the attempt that is under way and free what it opened."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Report ``PauseOver`` after a while."""


@dataclass(frozen=True, slots=True)
class CancelPause:
    """Stop the pause."""


Action = Connect | Abort | Disconnect | AbandonAttempt | Pause | CancelPause
Step = tuple[ConnectionState, tuple[Action, ...]]


def begin() -> Step:
    """The first attempt."""
    return ConnectionState(Phase.CONNECTING, 1), (Connect(1),)


def transition(state: ConnectionState, event: Event) -> Step:  # noqa: PLR0911 - one for each line of the table
    """The connection after an event, and what has to be done."""
    if isinstance(event, Connected | Failed | Blocked | Unblocked | Lost | GaveUp) and event.attempt != state.attempt:
        return state, ()
    match state.phase, event:
        case Phase.CONNECTING, Connected():
            return replace(state, phase=Phase.LIVE), ()
        case Phase.CONNECTING, Failed(reason=reason):
            return replace(state, phase=Phase.WAITING, reason=reason), (Pause(),)
        case Phase.CONNECTING | Phase.LIVE, Blocked(reason=reason):
            return replace(state, phase=Phase.BLOCKED, reason=reason), ()
        case Phase.BLOCKED, Unblocked():
            return replace(state, phase=Phase.LIVE, reason=""), ()
        case Phase.LIVE | Phase.BLOCKED, Lost() | GaveUp() | Failed():
            following = ConnectionState(Phase.CONNECTING, state.attempt + 1)
            return following, (Abort(), Connect(following.attempt))
        case Phase.WAITING, PauseOver():
            following = ConnectionState(Phase.CONNECTING, state.attempt + 1)
            return following, (Connect(following.attempt),)
        case _, Close():
            return _close(state)
        case _:
            return state, ()


def _close(state: ConnectionState) -> Step:
    closed = replace(state, phase=Phase.CLOSED, reason="")
    match state.phase:
        case Phase.CONNECTING:
            return closed, (AbandonAttempt(),)
        case Phase.LIVE:
            return closed, (Disconnect(),)
        case Phase.BLOCKED:
            return closed, (Abort(),)  # the broker reads nothing, not even a goodbye
        case Phase.WAITING:
            return closed, (CancelPause(),)
        case Phase.CLOSED:
            return state, ()
