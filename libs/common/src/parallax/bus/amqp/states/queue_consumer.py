"""The states of the consumer of one queue.

::

    STARTING ──Failed──▶ CLOSED                   Stop                     Cancelled
        │ Attached                      LIVE ────────────▶ STOPPING ─────────────────▶ DRAINING
        ▼          Lost                                        │ CancelFailed, Lost        │ Lost
       LIVE ──────────────▶ LOST                               ▼                           │
        ▲                    │ PauseOver                    STOPPED ◀──────────────────────┘
        └─── ATTACHING ◀─────┘                                 ▲
              Attached             Stop, from STARTING, ATTACHING and LOST     Close, from any state ──▶ CLOSED

From STOPPING on there is no way back to ATTACHING: a consumer that was stopped never attaches again, in whichever
state it was. A delivery is given back unseen only in STOPPING, which the broker's answer, a failed cancellation or the
loss of the channel ends.
"""

from dataclasses import dataclass, replace
from enum import Enum


class Phase(Enum):
    """What the consumer is doing."""

    STARTING = "starting"
    """The first attempt to attach, whose failure is the caller's to handle."""
    ATTACHING = "attaching"
    LIVE = "live"
    LOST = "lost"
    """It pauses before it attaches again."""
    STOPPING = "stopping"
    """The broker was asked to cancel the consumer; deliveries may still arrive."""
    DRAINING = "draining"
    """Nothing arrives any more; what was delivered can be settled."""
    STOPPED = "stopped"
    """It has no channel and wants none."""
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class ConsumerState:
    """A consumer; ``attempt`` counts the channels that were begun."""

    phase: Phase
    attempt: int


# --- events


@dataclass(frozen=True, slots=True)
class Attached:
    """The broker accepted the consumer."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt to attach failed."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The channel or the connection ended, or the broker cancelled the consumer."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """A delivery came; ``exhausted`` when it was delivered too often to be tried again."""

    attempt: int
    exhausted: bool = False


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The broker confirmed that it delivers nothing more."""

    attempt: int


@dataclass(frozen=True, slots=True)
class CancelFailed:
    """The broker did not confirm the cancellation."""

    attempt: int


@dataclass(frozen=True, slots=True)
class PauseOver:
    """The pause after a loss ended."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Nothing more is wanted; deliveries already here can still be settled."""


@dataclass(frozen=True, slots=True)
class Close:
    """Nothing is wanted any more, settling included."""


Event = Attached | Failed | Lost | Arrived | Cancelled | CancelFailed | PauseOver | Stop | Close


# --- actions


@dataclass(frozen=True, slots=True)
class Attach:
    """Declare the queue and consume it on a new channel, under this number."""

    attempt: int


@dataclass(frozen=True, slots=True)
class AbandonAttempt:
    """Stop the attempt that is under way and close what it opened."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ask the broker to deliver nothing more."""


@dataclass(frozen=True, slots=True)
class Discard:
    """Close the channel; what is unsettled on it goes back to the queue."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Report ``PauseOver`` after a while."""


@dataclass(frozen=True, slots=True)
class CancelPause:
    """Stop the pause."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Give the delivery to the handler."""


@dataclass(frozen=True, slots=True)
class PassBack:
    """Give the delivery back unseen."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Move the delivery to the dead letters."""


Action = Attach | AbandonAttempt | Cancel | Discard | Pause | CancelPause | HandOver | PassBack | DeadLetter
Step = tuple[ConsumerState, tuple[Action, ...]]

ATTACHABLE = (Phase.STARTING, Phase.ATTACHING)
CONSUMING = (*ATTACHABLE, Phase.LIVE)
WITH_CHANNEL = (Phase.LIVE, Phase.STOPPING, Phase.DRAINING)


def begin() -> Step:
    """The first attempt."""
    return ConsumerState(Phase.STARTING, 1), (Attach(1),)


def transition(state: ConsumerState, event: Event) -> Step:  # noqa: PLR0911 - one for each line of the table
    """The consumer after an event, and what has to be done."""
    match event:
        case Stop():
            return _stop(state)
        case Close():
            return _close(state)
        case PauseOver():
            if state.phase is not Phase.LOST:
                return state, ()
            following = ConsumerState(Phase.ATTACHING, state.attempt + 1)
            return following, (Attach(following.attempt),)
        case _ if event.attempt != state.attempt:
            return state, ()
        case Attached():
            if state.phase in ATTACHABLE:
                return replace(state, phase=Phase.LIVE), ()
            return state, () if state.phase is Phase.LIVE else (Discard(),)
        case Failed() | Lost():
            return _lose(state)
        case Arrived():
            return state, _delivered(state, event)
        case Cancelled():
            return (replace(state, phase=Phase.DRAINING), ()) if state.phase is Phase.STOPPING else (state, ())
        case CancelFailed():
            # A consumer that the broker may still have would have every message to give back, again and again.
            return (replace(state, phase=Phase.STOPPED), (Discard(),)) if state.phase is Phase.STOPPING else (state, ())


def _delivered(state: ConsumerState, event: Arrived) -> tuple[Action, ...]:
    if state.phase in CONSUMING:
        return (DeadLetter(),) if event.exhausted else (HandOver(),)
    return (PassBack(),) if state.phase is Phase.STOPPING else ()


def _lose(state: ConsumerState) -> Step:
    match state.phase:
        case Phase.STARTING:
            return replace(state, phase=Phase.CLOSED), (Discard(),)
        case Phase.ATTACHING | Phase.LIVE:
            return replace(state, phase=Phase.LOST), (Discard(), Pause())
        case Phase.STOPPING | Phase.DRAINING:
            return replace(state, phase=Phase.STOPPED), (Discard(),)
        case Phase.LOST | Phase.STOPPED | Phase.CLOSED:
            return state, ()


def _stop(state: ConsumerState) -> Step:
    match state.phase:
        case Phase.STARTING | Phase.ATTACHING:
            return replace(state, phase=Phase.STOPPED), (AbandonAttempt(), Discard())
        case Phase.LIVE:
            return replace(state, phase=Phase.STOPPING), (Cancel(),)
        case Phase.LOST:
            return replace(state, phase=Phase.STOPPED), (CancelPause(),)
        case Phase.STOPPING | Phase.DRAINING | Phase.STOPPED | Phase.CLOSED:
            return state, ()


def _close(state: ConsumerState) -> Step:
    closed = replace(state, phase=Phase.CLOSED)
    if state.phase in ATTACHABLE:
        return closed, (AbandonAttempt(), Discard())
    if state.phase in WITH_CHANNEL:
        return closed, (Discard(),)
    return closed, (CancelPause(),) if state.phase is Phase.LOST else ()
