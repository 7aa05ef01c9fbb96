"""Every reachable state of a reader of a stream, under every event: on a short stream, and on one that began again."""

from collections import deque
from collections.abc import Iterator
from itertools import product

from parallax.bus.amqp.states import stream_consumer as states
from parallax.bus.amqp.states.stream_consumer import READING, START_ATTEMPTS, Phase, StreamState, begin, transition

MOST_ATTEMPTS = START_ATTEMPTS + 2
OFFSETS = (0, 1, 2)


def events(state: StreamState) -> Iterator[states.Event]:
    """Everything that can be reported to a reader."""
    attempt = state.attempt
    yield states.Attached(attempt)
    yield states.Failed(attempt)
    yield states.Silent(attempt)
    yield states.Lost(attempt)
    yield states.PauseOver()
    yield states.Close()
    for offset, identity, marker in product(OFFSETS, ("old", "new"), (None, state.marker, "another")):
        yield states.Entry(attempt, offset, identity, marker)


def reachable() -> set[StreamState]:
    """Every state that some order of events leads to."""
    first, _ = begin("reader")
    seen: set[StreamState] = set()
    waiting = deque([first])
    while waiting:
        state = waiting.popleft()
        if state not in seen and state.attempt <= MOST_ATTEMPTS:
            seen.add(state)
            waiting.extend(transition(state, event)[0] for event in events(state))
    return seen


def test_every_order_of_events() -> None:
    found = reachable()
    assert {state.phase for state in found} == set(Phase)
    for state in found:
        for event in events(state):
            after, actions = transition(state, event)
            check(state, event, after, actions)
            if isinstance(event, states.Entry):
                check_entry(state, event, after, actions)


def check(state: StreamState, event: states.Event, after: StreamState, actions: tuple[states.Action, ...]) -> None:
    """What holds of every step."""
    attaches = [action for action in actions if isinstance(action, states.Attach)]
    if after.attempt > state.attempt:
        offset = None if state.position is None else state.position.offset
        assert attaches == [states.Attach(after.attempt, offset)]
        assert after.verified == (state.position is None), "it looks at its last entry again"
    else:
        assert attaches == []
    entered = after.phase is not state.phase
    markers = [action for action in actions if isinstance(action, states.PublishMarker)]
    assert markers == ([states.PublishMarker(after.marker)] if entered and after.phase is Phase.CATCHING_UP else [])
    assert (states.Pause() in actions) == (entered and after.phase is Phase.LOST)
    if state.phase in READING and after.phase not in READING:
        assert states.Discard() in actions
    if entered and after.phase is Phase.CLOSED:
        given_up = state.starts_left == 1 and after.starts_left == 0
        assert isinstance(event, states.Close) or given_up
    if entered and after.phase is Phase.LIVE:
        assert isinstance(event, states.Entry)
        assert (event.marker, state.phase) == (state.marker, Phase.CATCHING_UP), "its own marker, and no other"
    if state.phase is Phase.CLOSED:
        assert after.phase is Phase.CLOSED
        assert set(actions) <= {states.Discard()}
    if after.position is None and state.position is not None:
        assert after.phase in (Phase.LOST, Phase.CLOSED), "it reads from the first entry on another channel"


def check_entry(
    state: StreamState, entry: states.Entry, after: StreamState, actions: tuple[states.Action, ...]
) -> None:
    """No entry is handled twice or passed over, and each is acknowledged."""
    if state.phase not in READING:
        assert (after, actions) == (state, ())
        return
    position = state.position
    if position is not None and not state.verified and entry.offset == position.offset:
        if entry.identity != position.identity:
            assert after.position is None, "the stream began again"
            assert states.Handle() not in actions
            return
        assert after.verified
    new = position is None or entry.offset > position.offset
    assert actions == ((states.Handle(),) if new and entry.marker is None else ()) + (states.Acknowledge(),)
    assert after.position == (states.Position(entry.offset, entry.identity) if new else position)


def test_what_an_earlier_channel_still_reports_changes_nothing() -> None:
    for state in reachable():
        earlier = state.attempt - 1
        for event in (states.Attached(earlier), states.Failed(earlier), states.Silent(earlier), states.Lost(earlier)):
            assert transition(state, event) == (state, ())
        assert transition(state, states.Entry(earlier, 2, "old")) == (state, ())


def test_a_start_that_fails_again_and_again_is_reported() -> None:
    state, _ = begin("reader")
    for attempt in range(1, START_ATTEMPTS):
        state, _ = transition(state, states.Failed(attempt))
        assert state.phase is Phase.LOST
        state, _ = transition(state, states.PauseOver())
    state, actions = transition(state, states.Failed(START_ATTEMPTS))
    assert (state.phase, actions) == (Phase.CLOSED, (states.Discard(),))


def test_silence_at_the_old_position_means_that_the_stream_began_again() -> None:
    state, actions = begin("reader")
    for event in (
        states.Attached(1),
        states.Entry(1, 2, "old", state.marker),
        states.Lost(1),
        states.PauseOver(),
        states.Attached(2),
        states.Silent(2),
        states.PauseOver(),
    ):
        state, actions = transition(state, event)
    assert actions == (states.Attach(3, None),)
