"""The circuit breaker: whether calls go to a model that refuses them, or whose calls fail."""

from hypothesis import given
from hypothesis import strategies as st

from executor.circuit_breaker import SLOW_DOWN_AFTER, BreakerState, CircuitBreaker, Permit
from executor.retry import RetryPolicy

POLICY = RetryPolicy(base_s=1.0, cap_s=8.0)


def breaker(budget: int = 4, slowest_pace: int = 1) -> CircuitBreaker:
    return CircuitBreaker(POLICY, budget, slowest_pace)


def admitted(at: CircuitBreaker, now: float, most: int = 100) -> list[Permit]:
    permits: list[Permit] = []
    while len(permits) < most and (permit := at.admit(now)) is not None:
        permits.append(permit)
    return permits


def refuse(at: CircuitBreaker, permit: Permit, now: float, retry_after_s: float | None = None, draw: float = 1) -> None:
    at.refused(permit, now, state="unavailable", retry_after_s=retry_after_s, draw=draw)


def test_a_closed_breaker_admits_every_call() -> None:
    assert len(admitted(breaker(), 0.0)) == 100


def test_a_refusal_opens_it_and_a_single_probe_goes_first() -> None:
    at = breaker()
    [permit] = admitted(at, 0.0, most=1)
    refuse(at, permit, 0.0)
    assert (at.state, at.endpoint_state, at.healthy) == (BreakerState.OPEN, "unavailable", False)
    assert admitted(at, 0.99) == []
    [probe] = admitted(at, 1.0)
    assert probe.probe
    assert at.state is BreakerState.HALF_OPEN


def test_refused_probes_wait_longer_each_time_up_to_the_cap() -> None:
    at = breaker()
    now, waits = 0.0, []
    for _ in range(6):
        [permit] = admitted(at, now, most=1)
        refuse(at, permit, now)
        assert at.retry_at is not None
        waits.append(at.retry_at - now)
        now = at.retry_at
    assert waits == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_retry_after_is_honoured_and_bounded() -> None:
    at = breaker()
    [permit] = admitted(at, 0.0, most=1)
    refuse(at, permit, 0.0, retry_after_s=30.0)
    assert at.retry_at == 30.0
    other = breaker()
    [permit] = admitted(other, 0.0, most=1)
    refuse(other, permit, 0.0, retry_after_s=1e9)
    assert other.retry_at == 900.0


def test_refusals_of_calls_already_in_flight_count_once() -> None:
    """Sixty-four calls refused together open it once, not sixty-four times."""
    at = breaker(budget=64)
    permits = admitted(at, 0.0, most=64)
    for permit in permits:
        refuse(at, permit, 0.0)
    assert (at.refusals, at.retry_at) == (1, 1.0)
    assert at.in_flight == 0


def test_an_answered_probe_closes_it_and_it_starts_slowly() -> None:
    at = breaker(budget=4)
    [permit] = admitted(at, 0.0, most=1)
    refuse(at, permit, 0.0)
    [probe] = admitted(at, 1.0)
    at.answered(probe, 1.5)
    assert (at.state, at.endpoint_state) == (BreakerState.CLOSED, "throttled")
    paces = []
    for _ in range(3):
        permits = admitted(at, 2.0)
        paces.append(len(permits))
        for permit in permits:
            at.answered(permit, 2.0)
    assert paces == [2, 4, 100]
    assert str(at.endpoint_state) == "ready"


def test_a_throttled_endpoint_gets_half_the_pace() -> None:
    at = breaker(budget=8)
    permits = admitted(at, 0.0, most=8)
    at.refused(permits[0], 0.0, state="throttled", retry_after_s=None, draw=1.0)
    assert at.pace == 4


def test_a_probe_that_ends_without_a_verdict_frees_its_place() -> None:
    at = breaker()
    [permit] = admitted(at, 0.0, most=1)
    refuse(at, permit, 0.0)
    [probe] = admitted(at, 1.0)
    assert admitted(at, 1.1) == []
    at.released(probe, 1.2)
    assert len(admitted(at, 1.2)) == 1


def test_a_probe_without_an_end_does_not_keep_it_open_for_ever() -> None:
    at = breaker()
    [permit] = admitted(at, 0.0, most=1)
    refuse(at, permit, 0.0)
    admitted(at, 1.0)
    assert len(admitted(at, 1.0 + POLICY.cap_s)) == 1


def fail(at: CircuitBreaker, calls: int) -> None:
    for permit in admitted(at, 0.0, most=calls):
        at.failed(permit, 0.0)


def test_a_model_whose_calls_keep_failing_is_slowed_down_but_not_stopped() -> None:
    at = breaker(budget=8, slowest_pace=2)
    fail(at, SLOW_DOWN_AFTER - 1)
    assert at.healthy
    fail(at, 1)
    assert (at.healthy, at.state) == (False, BreakerState.CLOSED)
    assert len(admitted(at, 0.0)) == 2


def test_an_answer_ends_a_row_of_failures() -> None:
    at = breaker(budget=8)
    fail(at, SLOW_DOWN_AFTER - 1)
    [permit] = admitted(at, 0.0, most=1)
    at.answered(permit, 0.0)
    fail(at, SLOW_DOWN_AFTER - 1)
    assert at.healthy


def test_a_slow_model_gets_its_budget_back_answer_by_answer() -> None:
    at = breaker(budget=4, slowest_pace=1)
    fail(at, SLOW_DOWN_AFTER)
    for answers in range(1, 5):
        assert not at.healthy, answers
        [permit] = admitted(at, 0.0, most=1)
        at.answered(permit, 0.0)
    assert at.healthy


def test_the_only_model_of_a_region_is_not_slowed_down() -> None:
    at = breaker(budget=8, slowest_pace=8)
    fail(at, 50)
    assert (at.healthy, at.pace) == (True, None)


def test_warmth_is_an_answer_a_short_while_ago() -> None:
    at = breaker()
    assert not at.warm(0.0)
    [permit] = admitted(at, 0.0, most=1)
    at.answered(permit, 10.0)
    assert at.warm(60.0)
    assert not at.warm(71.0)


EVENTS = st.sampled_from(["admit", "answered", "refused", "failed", "released"])


@given(st.lists(st.tuples(EVENTS, st.floats(0, 3)), max_size=60))
def test_whatever_happens_it_admits_calls_again_and_counts_right(events: list[tuple[str, float]]) -> None:
    at, now, in_flight = breaker(), 0.0, list[Permit]()
    for event, later in events:
        now += later
        if event == "admit":
            in_flight += [permit for permit in [at.admit(now)] if permit is not None]
        elif in_flight:
            permit = in_flight.pop(0)
            if event == "answered":
                at.answered(permit, now)
            elif event == "refused":
                refuse(at, permit, now, draw=0.5)
            elif event == "failed":
                at.failed(permit, now)
            else:
                at.released(permit, now)
        assert at.in_flight == len(in_flight)
        assert at.pace is None or 1 <= at.pace <= at.budget
        assert (at.retry_at is None) == (at.state is BreakerState.CLOSED)
        assert at.healthy == (at.pace is None)
    for permit in in_flight:
        at.released(permit, now)
    assert at.admit(now + POLICY.cap_s) is not None
