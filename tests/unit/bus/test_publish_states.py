"""Every reachable state of a call of ``publish``, under every event."""

from collections import deque
from collections.abc import Iterator

import pytest

from parallax.bus.amqp.states import publish as states
from parallax.bus.amqp.states.publish import Failure, Phase, PublishState, begin, transition

ENDED = (Phase.DELIVERED, Phase.FAILED)
ENDS = (states.Succeed, states.Fail)


def events() -> Iterator[states.Event]:
    """Everything that can come of what a call does."""
    yield states.Written()
    yield states.Refused()
    for confirmed, returned in ((2, 0), (1, 1), (0, 2)):
        yield states.Answered(confirmed, returned)
    yield states.NoExchange()
    yield states.Nacked()
    yield states.TimedOut()
    yield states.Lost()
    yield states.CallerLeft()
    yield states.Declared(1)
    yield states.Declared(2)


@pytest.mark.parametrize("batches", [0, 1, 2, 3])
def test_every_order_of_events(batches: int) -> None:
    first, actions = begin(batches)
    assert actions == ((states.Write(),) if batches else (states.Succeed(),))
    seen: set[PublishState] = set()
    waiting = deque([first])
    while waiting:
        state = waiting.popleft()
        if state in seen:
            continue
        seen.add(state)
        for event in events():
            after, actions = transition(state, event)
            check(state, event, after, actions)
            waiting.append(after)
    assert len(seen) > batches


def check(state: PublishState, event: states.Event, after: PublishState, actions: tuple[states.Action, ...]) -> None:
    """What holds of every step."""
    if state.phase in ENDED or after == state:
        assert (after, actions) == (state, ())
        return
    ends = [action for action in actions if isinstance(action, ENDS)]
    assert len(ends) == (after.phase in ENDED)
    assert len(actions) == 1 or isinstance(actions[0], states.Abort | states.AbortUnlessAnswered)
    assert (states.Write() in actions) == (after.phase is Phase.READY)
    assert (states.AwaitAnswers() in actions) == (after.phase is Phase.AWAITING)
    assert (states.Declare() in actions) == (after.phase is Phase.DECLARING)
    if after.phase is Phase.DECLARING:
        assert not state.last_try, "what has no queue is sent again once"
    if after.phase is Phase.DELIVERED:
        assert not after.batches
        assert not after.returned
    assert after.delivered >= state.delivered
    check_failure(state, event, actions)


def check_failure(state: PublishState, event: states.Event, actions: tuple[states.Action, ...]) -> None:
    """The caller is told no more and no less than what is known, and a call that is given up leaves nothing behind."""
    unanswered = state.phase is Phase.AWAITING and not isinstance(event, states.Answered)
    for action in actions:
        match action:
            case states.Fail(Failure.UNSENT):
                assert not state.delivered
                assert not unanswered
            case states.Fail(Failure.UNCONFIRMED):
                assert state.delivered or unanswered
            case states.Fail(Failure.UNROUTABLE):
                assert isinstance(event, states.Answered)
                assert state.last_try
            case _:
                pass
    if state.phase is Phase.AWAITING:
        assert (states.Abort() in actions) == isinstance(event, states.TimedOut)
        assert (states.AbortUnlessAnswered() in actions) == isinstance(event, states.CallerLeft)
    else:
        assert not {states.Abort(), states.AbortUnlessAnswered()} & set(actions), "nothing unanswered, nothing to reset"


def test_a_refusal_after_a_confirmed_batch_is_not_harmless_to_repeat() -> None:
    state, actions = begin(2)
    for event in (states.Written(), states.Answered(256, 0), states.Refused()):
        state, actions = transition(state, event)
    assert actions == (states.Fail(Failure.UNCONFIRMED),)


def test_what_has_no_queue_in_spite_of_a_declaration_is_unroutable() -> None:
    state, actions = begin(1)
    for event in (
        states.Written(),
        states.Answered(1, 1),
        states.Declared(1),
        states.Written(),
        states.Answered(0, 1),
    ):
        state, actions = transition(state, event)
    assert actions == (states.Fail(Failure.UNROUTABLE),)
