"""Who calls next: slots and circuit breakers together."""

import asyncio
from datetime import datetime
from random import Random

from executor.admission import BreakerQueue, Slots
from executor.circuit_breaker import CircuitBreaker, EndpointState, Permit
from executor.retry import RetryPolicy
from parallax.clock import SystemClock

POLICY = RetryPolicy(base_s=1.0, cap_s=8.0)
BUDGET = 4
WAIT_S = 10.0
"""A permit that should come at once and does not."""


class ManualClock(SystemClock):
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


def queue_of(slots: Slots, clock: ManualClock, changes: list[EndpointState] | None = None) -> BreakerQueue:
    def on_change(state: EndpointState, _reason: str) -> None:
        if changes is not None:
            changes.append(state)

    return BreakerQueue(CircuitBreaker(POLICY, BUDGET, 1), slots, clock, Random(1), on_change)


async def enter(queue: BreakerQueue, *, may_wait: bool = True) -> Permit:
    async with asyncio.timeout(WAIT_S):
        permit = await queue.enter(may_wait=may_wait)
    assert permit is not None
    return permit


async def refused(queue: BreakerQueue, retry_after_s: float = 5.0) -> None:
    queue.refused(await enter(queue), state="throttled", retry_after_s=retry_after_s, reason="slow down")


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_tasks_wait_in_order_for_the_breaker() -> None:
    clock, changes = ManualClock(), list[EndpointState]()
    queue = queue_of(Slots(BUDGET), clock, changes)
    await refused(queue)
    order: list[int] = []

    async def call(number: int) -> None:
        permit = await enter(queue)
        order.append(number)
        queue.answered(permit)

    waiting = [asyncio.create_task(call(number)) for number in range(10)]
    await settle()
    assert order == []
    clock.jump(5.0)
    await asyncio.gather(*waiting)
    assert order == list(range(10))
    assert changes == ["throttled", "ready"]
    assert queue.slots.free == BUDGET
    await queue.close()


async def test_what_waits_for_a_breaker_holds_no_slot() -> None:
    clock, slots = ManualClock(), Slots(BUDGET)
    throttled, healthy = queue_of(slots, clock), queue_of(slots, clock)
    await refused(throttled)
    waiting = [asyncio.create_task(enter(throttled)) for _ in range(50)]
    await settle()
    assert slots.free == BUDGET
    for _ in range(BUDGET):
        await enter(healthy)
    for task in waiting:
        task.cancel()
    await throttled.close()


async def test_what_waits_for_a_slot_holds_no_permit() -> None:
    """A probe that waited for a slot would keep every other probe away."""
    clock, slots = ManualClock(), Slots(1)
    throttled, healthy = queue_of(slots, clock), queue_of(slots, clock)
    await refused(throttled)
    busy = await enter(healthy)
    probe = asyncio.create_task(enter(throttled))
    await settle()
    clock.jump(20.0)
    await settle()
    assert throttled.breaker.in_flight == 0
    healthy.answered(busy)
    assert (await probe).probe
    await throttled.close()


async def test_never_more_calls_than_slots() -> None:
    clock, slots = ManualClock(), Slots(2)
    queues = [queue_of(slots, clock) for _ in range(3)]
    entering = [asyncio.create_task(enter(queue)) for queue in queues for _ in range(4)]
    await settle()
    assert sum(task.done() for task in entering) == 2
    assert sum(queue.breaker.in_flight for queue in queues) == 2
    for task in entering:
        task.cancel()


async def test_models_get_free_slots_in_turn() -> None:
    clock, slots = ManualClock(), Slots(1)
    crowded, lone = queue_of(slots, clock), queue_of(slots, clock)
    order: list[str] = []

    async def call(queue: BreakerQueue, name: str) -> None:
        permit = await enter(queue)
        order.append(name)
        await asyncio.sleep(0)
        queue.answered(permit)

    calls = [asyncio.create_task(call(crowded, "crowded")) for _ in range(6)]
    await asyncio.sleep(0)
    calls += [asyncio.create_task(call(lone, "lone")) for _ in range(2)]
    await asyncio.gather(*calls)
    assert order == [*["crowded"] * 3, "lone", "crowded", "lone", "crowded", "crowded"]


async def test_a_task_that_may_not_wait_is_dismissed_as_soon_as_the_model_is_not_healthy() -> None:
    clock, slots = ManualClock(), Slots(1)
    queue = queue_of(slots, clock)
    first = await enter(queue, may_wait=False)
    patient, impatient = (asyncio.create_task(queue.enter(may_wait=may_wait)) for may_wait in (True, False))
    await settle()
    assert not impatient.done(), "for a slot it waits"
    queue.refused(first, state="throttled", retry_after_s=None, reason="slow down")
    async with asyncio.timeout(WAIT_S):
        assert await impatient is None
    assert await queue.enter(may_wait=False) is None
    assert not patient.done()
    clock.jump(1.0)
    assert (await patient) is not None
    await queue.close()


async def test_a_cancelled_wait_leaves_the_others_their_turn() -> None:
    clock = ManualClock()
    queue = queue_of(Slots(BUDGET), clock)
    await refused(queue)
    first, second = asyncio.create_task(enter(queue)), asyncio.create_task(enter(queue))
    await settle()
    first.cancel()
    clock.jump(5.0)
    assert (await second).probe
    assert first.cancelled()
    assert (queue.breaker.in_flight, queue.slots.free) == (1, BUDGET - 1)
    await queue.close()


async def test_a_turn_given_in_the_moment_of_a_cancel_goes_to_the_next() -> None:
    clock = ManualClock()
    queue = queue_of(Slots(BUDGET), clock)
    await refused(queue)
    first, second = asyncio.create_task(enter(queue)), asyncio.create_task(enter(queue))
    await settle()
    clock.at += 5.0
    queue.slots.assign()  # the first gets its turn, and is cancelled before it runs
    first.cancel()
    assert (await second).probe
    assert (queue.breaker.in_flight, queue.slots.free) == (1, BUDGET - 1)
    await queue.close()


async def test_the_trouble_of_a_model_is_its_last_refusal_until_it_is_healthy() -> None:
    clock = ManualClock()
    queue = queue_of(Slots(BUDGET), clock)
    troubles = [queue.trouble]
    await refused(queue)
    troubles.append(queue.trouble)
    clock.jump(5.0)
    for _ in range(BUDGET):
        queue.answered(await enter(queue))
    assert [*troubles, queue.trouble] == [None, "slow down", None]
