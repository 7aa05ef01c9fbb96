"""The gate: who may call while an endpoint refuses calls."""

import asyncio
from datetime import datetime
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from executor.gate import EndpointState, Gate, Ticket, Turnstile
from executor.retry import RetryPolicy
from parallax.clock import SystemClock

POLICY = RetryPolicy(base_s=1.0, cap_s=8.0)


def gate(budget: int = 4) -> Gate:
    return Gate(POLICY, budget)


def admitted(at: Gate, now: float, most: int = 100) -> list[Ticket]:
    tickets: list[Ticket] = []
    while len(tickets) < most and (ticket := at.admit(now)) is not None:
        tickets.append(ticket)
    return tickets


def refuse(at: Gate, ticket: Ticket, now: float, retry_after_s: float | None = None, draw: float = 1.0) -> None:
    at.refused(ticket, now, state="unavailable", retry_after_s=retry_after_s, draw=draw)


def test_an_open_gate_lets_everybody_in() -> None:
    assert len(admitted(gate(), 0.0)) == 100


def test_a_refusal_closes_it_and_a_single_probe_goes_first() -> None:
    at = gate()
    [ticket] = admitted(at, 0.0, most=1)
    refuse(at, ticket, 0.0)
    assert at.state == "unavailable"
    assert admitted(at, 0.99) == []
    [probe] = admitted(at, 1.0)
    assert probe.probe


def test_refused_probes_wait_longer_each_time_up_to_the_cap() -> None:
    at = gate()
    now, waits = 0.0, []
    for _ in range(6):
        [ticket] = admitted(at, now, most=1)
        refuse(at, ticket, now)
        assert at.opens_at is not None
        waits.append(at.opens_at - now)
        now = at.opens_at
    assert waits == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_retry_after_is_honoured_and_bounded() -> None:
    at = gate()
    [ticket] = admitted(at, 0.0, most=1)
    refuse(at, ticket, 0.0, retry_after_s=30.0)
    assert at.opens_at == 30.0
    other = gate()
    [ticket] = admitted(other, 0.0, most=1)
    refuse(other, ticket, 0.0, retry_after_s=1e9)
    assert other.opens_at == 900.0


def test_refusals_of_calls_already_inside_count_once() -> None:
    """Sixty-four calls refused together are one closing, not sixty-four."""
    at = gate(budget=64)
    tickets = admitted(at, 0.0, most=64)
    for ticket in tickets:
        refuse(at, ticket, 0.0)
    assert (at.refusals, at.opens_at) == (1, 1.0)
    assert at.inside == 0


def test_an_answered_probe_opens_it_slowly() -> None:
    at = gate(budget=4)
    [ticket] = admitted(at, 0.0, most=1)
    refuse(at, ticket, 0.0)
    [probe] = admitted(at, 1.0)
    at.answered(probe, 1.5)
    assert at.state == "throttled"
    paces = []
    for _ in range(3):
        tickets = admitted(at, 2.0)
        paces.append(len(tickets))
        for ticket in tickets:
            at.answered(ticket, 2.0)
    assert paces == [2, 4, 100]
    assert str(at.state) == "ready"


def test_a_throttled_endpoint_gets_half_the_pace() -> None:
    at = gate(budget=8)
    tickets = admitted(at, 0.0, most=8)
    at.refused(tickets[0], 0.0, state="throttled", retry_after_s=None, draw=1.0)
    assert at.pace == 4


def test_a_probe_that_ends_without_a_verdict_frees_its_place() -> None:
    at = gate()
    [ticket] = admitted(at, 0.0, most=1)
    refuse(at, ticket, 0.0)
    [probe] = admitted(at, 1.0)
    assert admitted(at, 1.1) == []
    at.released(probe, 1.2)
    assert len(admitted(at, 1.2)) == 1


def test_a_probe_without_an_end_does_not_keep_it_closed_for_ever() -> None:
    at = gate()
    [ticket] = admitted(at, 0.0, most=1)
    refuse(at, ticket, 0.0)
    admitted(at, 1.0)
    assert len(admitted(at, 1.0 + POLICY.cap_s)) == 1


def test_warmth_is_an_answer_a_short_while_ago() -> None:
    at = gate()
    assert not at.warm(0.0)
    [ticket] = admitted(at, 0.0, most=1)
    at.answered(ticket, 10.0)
    assert at.warm(60.0)
    assert not at.warm(71.0)


@given(st.lists(st.tuples(st.sampled_from(["admit", "answered", "refused", "released"]), st.floats(0, 3)), max_size=60))
def test_whatever_happens_the_gate_opens_again_and_counts_right(events: list[tuple[str, float]]) -> None:
    at, now, inside = gate(), 0.0, []
    for event, later in events:
        now += later
        if event == "admit":
            inside += [ticket for ticket in [at.admit(now)] if ticket is not None]
        elif inside:
            ticket = inside.pop(0)
            if event == "answered":
                at.answered(ticket, now)
            elif event == "refused":
                refuse(at, ticket, now, draw=0.5)
            else:
                at.released(ticket, now)
        assert at.inside == len(inside)
        assert at.pace is None or 1 <= at.pace <= at.budget
    for ticket in inside:
        at.released(ticket, now)
    assert at.admit(now + POLICY.cap_s) is not None


class Watched(SystemClock):
    """A clock that stands still until it is told to jump."""

    def __init__(self) -> None:
        self.at = 0.0
        self._jumped = asyncio.Event()

    def monotonic(self) -> float:
        return self.at

    def now(self) -> datetime:
        return super().now()

    async def sleep(self, seconds: float) -> None:
        until = self.at + seconds
        while self.at < until:
            self._jumped.clear()
            await self._jumped.wait()

    def jump(self, seconds: float) -> None:
        self.at += seconds
        self._jumped.set()


async def test_tasks_wait_at_the_turnstile_in_order() -> None:
    clock, changes = Watched(), list[EndpointState]()
    turnstile = Turnstile(gate(), clock, Random(1), lambda state, _reason: changes.append(state))
    ticket = await turnstile.enter()
    turnstile.refused(ticket, state="unavailable", retry_after_s=5.0, reason="down")
    order: list[int] = []

    async def pass_through(number: int) -> None:
        mine = await turnstile.enter()
        order.append(number)
        turnstile.answered(mine)

    waiting = [asyncio.create_task(pass_through(number)) for number in range(10)]
    await asyncio.sleep(0)
    assert order == []
    clock.jump(5.0)
    await asyncio.gather(*waiting)
    assert order == list(range(10))
    assert changes == ["unavailable", "throttled", "ready"]
    await turnstile.close()


async def test_a_cancelled_wait_leaves_the_others_their_turn() -> None:
    clock = Watched()
    turnstile = Turnstile(gate(), clock, Random(1), lambda _state, _reason: None)
    turnstile.refused(await turnstile.enter(), state="throttled", retry_after_s=5.0, reason="slow down")
    first, second = asyncio.create_task(turnstile.enter()), asyncio.create_task(turnstile.enter())
    await asyncio.sleep(0)
    first.cancel()
    clock.jump(5.0)
    ticket = await second
    assert ticket.probe
    assert first.cancelled()
    assert turnstile.gate.inside == 1
    await turnstile.close()


async def test_a_turn_given_in_the_moment_of_a_cancel_goes_to_the_next() -> None:
    clock = Watched()
    turnstile = Turnstile(gate(), clock, Random(1), lambda _state, _reason: None)
    turnstile.refused(await turnstile.enter(), state="throttled", retry_after_s=5.0, reason="slow down")
    first, second = asyncio.create_task(turnstile.enter()), asyncio.create_task(turnstile.enter())
    await asyncio.sleep(0)
    clock.at += 5.0
    turnstile.released(Ticket(closings=-1))  # pumps: the first gets its turn, and is cancelled before it runs
    first.cancel()
    assert (await second).probe
    await turnstile.close()
