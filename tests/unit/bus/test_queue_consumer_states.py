"""Every reachable state of a queue consumer, under every event: of this channel, and of the one before."""

from collections import deque
from collections.abc import Iterator

from parallax.bus.amqp.states import queue_consumer as states
from parallax.bus.amqp.states.queue_consumer import (
    ATTACHABLE,
    CONSUMING,
    WITH_CHANNEL,
    ConsumerState,
    Phase,
    begin,
    transition,
)

MOST_ATTEMPTS = 3
ABOUT_A_DELIVERY = (states.HandOver, states.PassBack, states.DeadLetter)


def events(attempt: int) -> Iterator[states.Event]:
    """Everything that can be reported about a channel, and what concerns none."""
    yield states.Attached(attempt)
    yield states.Failed(attempt)
    yield states.Lost(attempt)
    yield states.Arrived(attempt)
    yield states.Arrived(attempt, exhausted=True)
    yield states.Cancelled(attempt)
    yield states.CancelFailed(attempt)
    yield states.PauseOver()
    yield states.Stop()
    yield states.Close()


def reachable() -> set[tuple[ConsumerState, bool]]:
    """Every state that some order of events leads to, and whether it was stopped or closed on the way."""
    first, _ = begin()
    seen: set[tuple[ConsumerState, bool]] = set()
    waiting = deque([(first, False)])
    while waiting:
        state, ended = waiting.popleft()
        if (state, ended) not in seen and state.attempt <= MOST_ATTEMPTS:
            seen.add((state, ended))
            for event in events(state.attempt):
                waiting.append((transition(state, event)[0], ended or is_end(event)))
    return seen


def is_end(event: states.Event) -> bool:
    """Whether the service wants nothing more."""
    return isinstance(event, states.Stop | states.Close)


def test_every_order_of_events() -> None:
    found = reachable()
    assert {state.phase for state, _ in found} == set(Phase)
    for state, ended in found:
        for event in events(state.attempt):
            after, actions = transition(state, event)
            check_end(state, event, after, actions, ended=ended or is_end(event))
            check_resources(state, event, after, actions)
            check_delivery(state, event, after, actions)
            assert transition(after, event)[0] == after, "the same event again changes nothing"


def check_end(
    state: ConsumerState,
    event: states.Event,
    after: ConsumerState,
    actions: tuple[states.Action, ...],
    *,
    ended: bool,
) -> None:
    """A consumer that was stopped or closed never attaches again, in whichever state it was."""
    attaches = [action for action in actions if isinstance(action, states.Attach)]
    assert attaches == ([states.Attach(after.attempt)] if after.attempt > state.attempt else [])
    assert (after.phase is Phase.ATTACHING) >= bool(attaches)
    if ended:
        assert attaches == []
        assert states.HandOver() not in actions
        assert after.phase not in CONSUMING
        assert after.phase is not Phase.LOST
    if state.phase is Phase.CLOSED:
        assert (after, set(actions) - {states.Discard()}) == (state, set())
    if isinstance(event, states.Close):
        assert after.phase is Phase.CLOSED


def check_resources(
    state: ConsumerState, event: states.Event, after: ConsumerState, actions: tuple[states.Action, ...]
) -> None:
    """Channels, attempts and pauses are ended when the state that needs them is left."""
    if state.phase in WITH_CHANNEL and after.phase not in WITH_CHANNEL:
        assert states.Discard() in actions
    if state.phase in ATTACHABLE and after.phase not in ATTACHABLE:
        by_itself = isinstance(event, states.Attached | states.Failed | states.Lost)
        assert (states.AbandonAttempt() in actions) == (not by_itself)
    if isinstance(event, states.Attached) and state.phase not in (*ATTACHABLE, Phase.LIVE):
        assert actions == (states.Discard(),), "an attempt that ended too late keeps no channel"
    assert (states.Pause() in actions) == (after.phase is Phase.LOST and state.phase is not Phase.LOST)
    if state.phase is Phase.LOST and after.phase is not Phase.LOST:
        assert (states.CancelPause() in actions) == (not isinstance(event, states.PauseOver))


def check_delivery(
    state: ConsumerState, event: states.Event, after: ConsumerState, actions: tuple[states.Action, ...]
) -> None:
    """Nothing is given back without a cause that ends."""
    settling = [action for action in actions if isinstance(action, ABOUT_A_DELIVERY)]
    assert bool(settling) <= isinstance(event, states.Arrived)
    if isinstance(event, states.Arrived):
        assert after == state
        expected: list[states.Action] = []
        if state.phase in CONSUMING:
            expected = [states.DeadLetter() if event.exhausted else states.HandOver()]
        elif state.phase is Phase.STOPPING:
            expected = [states.PassBack()]
        assert settling == expected
    assert (states.Cancel() in actions) == (after.phase is Phase.STOPPING and state.phase is not Phase.STOPPING)
    if state.phase is Phase.STOPPING and isinstance(event, states.Cancelled | states.CancelFailed | states.Lost):
        assert after.phase is not Phase.STOPPING, "each end of the cancellation ends the giving back"


def test_what_an_earlier_channel_still_reports_changes_nothing() -> None:
    for state, _ in reachable():
        for event in events(state.attempt - 1):
            if not is_end(event) and not isinstance(event, states.PauseOver):
                assert transition(state, event) == (state, ())
