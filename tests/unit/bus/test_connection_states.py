"""Every reachable state of a connection, under every event: of this connection, and of the one before."""

from collections import deque
from collections.abc import Iterator

from parallax.bus.amqp.states import connection as states
from parallax.bus.amqp.states.connection import ConnectionState, Phase, begin, transition

MOST_ATTEMPTS = 4
OPEN = (Phase.LIVE, Phase.BLOCKED)


def events(attempt: int) -> Iterator[states.Event]:
    """Everything that can be reported about an attempt, and what concerns none."""
    yield states.Connected(attempt)
    yield states.Failed(attempt, "refused")
    yield states.Blocked(attempt, "memory")
    yield states.Unblocked(attempt)
    yield states.Lost(attempt)
    yield states.GaveUp(attempt)
    yield states.PauseOver()
    yield states.Close()


def reachable() -> set[ConnectionState]:
    """Every state that some order of events leads to."""
    first, _ = begin()
    seen: set[ConnectionState] = set()
    waiting = deque([first])
    while waiting:
        state = waiting.popleft()
        if state not in seen and state.attempt <= MOST_ATTEMPTS:
            seen.add(state)
            waiting.extend(transition(state, event)[0] for event in events(state.attempt))
    return seen


def test_every_order_of_events() -> None:
    found = reachable()
    assert {state.phase for state in found} == set(Phase)
    for state in found:
        for event in events(state.attempt):
            after, actions = transition(state, event)
            check(state, event, after, actions)
            assert transition(after, event) == (after, ()), "the same event again changes nothing"


def check(
    state: ConnectionState, event: states.Event, after: ConnectionState, actions: tuple[states.Action, ...]
) -> None:
    """What holds of every step."""
    connects = [action for action in actions if isinstance(action, states.Connect)]
    begins = after.phase is Phase.CONNECTING and after != state
    assert connects == ([states.Connect(after.attempt)] if begins else [])
    assert after.attempt == state.attempt + len(connects)
    assert (states.Pause() in actions) == (after.phase is Phase.WAITING and state.phase is not Phase.WAITING)
    if state.phase is Phase.CLOSED:
        assert (after, actions) == (state, ())
    if state.phase in OPEN and after.phase not in OPEN:
        in_good_order = state.phase is Phase.LIVE and isinstance(event, states.Close)
        assert actions[0] == (states.Disconnect() if in_good_order else states.Abort()), "unread bytes die with it"
    if isinstance(event, states.GaveUp) and state.phase in OPEN:
        assert states.Abort() in actions
        assert after.phase is Phase.CONNECTING, "nobody writes on it any more"
    if isinstance(event, states.Close):
        assert after.phase is Phase.CLOSED
        assert bool(actions) == (state.phase is not Phase.CLOSED), "whatever is under way is ended"
    if state.phase is Phase.BLOCKED and after.phase is Phase.LIVE:
        assert isinstance(event, states.Unblocked)


def test_what_an_earlier_connection_still_reports_changes_nothing() -> None:
    for state in reachable():
        for event in events(state.attempt - 1):
            if not isinstance(event, states.PauseOver | states.Close):
                assert transition(state, event) == (state, ())


def test_a_blocked_connection_is_kept_until_the_alarm_is_over() -> None:
    state, _ = begin()
    state, actions = transition(state, states.Blocked(1, "memory"))
    assert (state.phase, state.reason, actions) == (Phase.BLOCKED, "memory", ())
    state, actions = transition(state, states.Connected(1))
    assert (state.phase, actions) == (Phase.BLOCKED, ()), "its probe was answered late"
    state, actions = transition(state, states.Unblocked(1))
    assert (state, actions) == (ConnectionState(Phase.LIVE, 1), ())
