"""``serve``: what becomes of a delivery follows from how its handler ends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from parallax.bus import letters
from parallax.bus.ignored import IGNORED
from parallax.bus.memory import MemoryBroker, MemoryBus
from parallax.bus.port import MAX_DELIVERIES, Delivery
from parallax.bus.serve import BUG_PAUSE_S, FIRST_PAUSE_S, HOLD_LIMIT_S, LONGEST_PAUSE_S, Serving, serve
from parallax.clock import SystemClock
from parallax.contracts import routing
from parallax.contracts.messages import CancelJob, decode
from parallax.errors import PoisonError, UnavailableError
from tests.fakes.clock import LeapingClock

QUEUE = routing.PROGRESS
WAIT_S = 30.0


@pytest.fixture
def broker() -> MemoryBroker:
    """An empty installation."""
    return MemoryBroker(["us"])


@pytest.fixture
async def bus(broker: MemoryBroker) -> AsyncIterator[MemoryBus]:
    """A client of it."""
    made = MemoryBus(broker)
    yield made
    await made.close()


async def publish(bus: MemoryBus, count: int = 1) -> None:
    """Fill the queue."""
    await bus.publish(*(CancelJob(job_id=f"job-{n}") for n in range(count)))


async def until(condition: Callable[[], bool]) -> None:
    """Let tasks run until something holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0)


async def remaining(bus: MemoryBus, serving: Serving, queue: routing.Queue = QUEUE) -> int:
    """What is left in a queue once nothing is held any more."""
    await serving.close()
    return await bus.depth(queue)


async def test_a_handler_that_returns_acknowledges(bus: MemoryBus) -> None:
    seen: list[bytes] = []

    async def handler(delivery: Delivery) -> None:
        seen.append(delivery.body)

    serving = await serve(bus, QUEUE, prefetch=2, handler=handler, clock=LeapingClock())
    await publish(bus, 5)
    await until(lambda: len(seen) == 5 and serving.in_flight == 0)
    assert serving.live
    assert await remaining(bus, serving) == 0
    assert not serving.live


async def test_handlers_run_side_by_side_up_to_prefetch(bus: MemoryBus) -> None:
    gate, running = asyncio.Event(), 0

    async def handler(_: Delivery) -> None:
        nonlocal running
        running += 1
        await gate.wait()

    serving = await serve(bus, QUEUE, prefetch=3, handler=handler, clock=LeapingClock())
    await publish(bus, 5)
    await until(lambda: running == 3)
    for _ in range(20):
        await asyncio.sleep(0)
    assert (running, serving.in_flight) == (3, 3)
    gate.set()
    await until(lambda: running == 5 and serving.in_flight == 0)


async def test_an_unavailable_server_is_waited_for_without_using_up_deliveries(bus: MemoryBus) -> None:
    counts: list[int] = []
    clock = LeapingClock()

    async def handler(delivery: Delivery) -> None:
        counts.append(delivery.delivery_count)
        if len(counts) <= 2 * MAX_DELIVERIES:
            raise UnavailableError("the database is away")

    serving = await serve(bus, QUEUE, prefetch=1, handler=handler, clock=clock)
    await publish(bus)
    await until(lambda: len(counts) == 2 * MAX_DELIVERIES + 1 and serving.in_flight == 0)
    assert set(counts) == {0}
    assert clock.pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert max(clock.pauses) == LONGEST_PAUSE_S
    assert await remaining(bus, serving) == 0


async def test_a_delivery_is_not_held_for_ever(bus: MemoryBus) -> None:
    clock = LeapingClock()
    returned = asyncio.Event()

    async def handler(delivery: Delivery) -> None:
        if delivery.delivery_count:
            returned.set()
            return
        raise UnavailableError("the database is away")

    await serve(bus, QUEUE, prefetch=1, handler=handler, clock=clock)
    await publish(bus)
    async with asyncio.timeout(WAIT_S):
        await returned.wait()
    assert HOLD_LIMIT_S <= clock.monotonic() < HOLD_LIMIT_S + 2 * LONGEST_PAUSE_S


@pytest.mark.parametrize("how", ["poison", "validation"])
async def test_what_no_repetition_makes_right_is_dead_lettered_at_once(bus: MemoryBus, how: str) -> None:
    calls = 0
    dead: list[Delivery] = []

    async def handler(delivery: Delivery) -> None:
        nonlocal calls
        calls += 1
        if how == "poison":
            raise PoisonError("cannot be read")
        decode(b'{"kind": "cannot be read"}')

    serving = await serve(bus, QUEUE, prefetch=1, handler=handler, clock=LeapingClock())
    await bus.consume(routing.DEAD_LETTERS, prefetch=1, handler=dead.append)
    await publish(bus)
    await until(lambda: len(dead) == 1)
    assert calls == 1
    assert "cannot be read" in str(dead[0].headers[letters.REASON_HEADER])
    assert await remaining(bus, serving) == 0


async def read_any(delivery: Delivery) -> None:
    """As every handler begins."""
    decode(delivery.body)


@pytest.mark.parametrize("queue", [routing.EVENTS, routing.BATCHES, routing.FACTS], ids=lambda queue: queue.name)
async def test_a_kind_of_a_newer_version_is_dropped_where_only_news_is_told(
    bus: MemoryBus, queue: routing.Queue
) -> None:
    dead: list[Delivery] = []
    before = IGNORED.labels(queue.name)._value.get()
    serving = await serve(bus, queue, prefetch=1, handler=read_any, clock=LeapingClock())
    await bus.consume(routing.DEAD_LETTERS, prefetch=1, handler=dead.append)
    await bus.publish_raw(queue, b'{"kind": "job_paused", "version": 1, "job_id": "job-1"}')
    if queue.news:
        await until(lambda: IGNORED.labels(queue.name)._value.get() == before + 1)
    else:
        await until(lambda: len(dead) == 1)
    assert await remaining(bus, serving, queue) == 0
    assert len(dead) == (0 if queue.news else 1)


async def leak_a_cancellation() -> None:
    """As a library does that cancels its own tasks carelessly."""
    raise asyncio.CancelledError


async def stumble() -> None:
    """A plain bug."""
    raise LookupError("a bug")


@pytest.mark.parametrize("bug", [stumble, leak_a_cancellation])
async def test_a_bug_is_tried_again_with_pauses_and_then_given_up(
    bus: MemoryBus, bug: Callable[[], Awaitable[None]]
) -> None:
    calls = 0
    clock = LeapingClock()

    async def handler(_: Delivery) -> None:
        nonlocal calls
        calls += 1
        await bug()

    dead: list[Delivery] = []
    serving = await serve(bus, QUEUE, prefetch=1, handler=handler, clock=clock)
    await bus.consume(routing.DEAD_LETTERS, prefetch=1, handler=dead.append)
    await publish(bus)
    await until(lambda: len(dead) == 1)
    assert calls == MAX_DELIVERIES
    assert clock.pauses == [BUG_PAUSE_S] * MAX_DELIVERIES
    assert await remaining(bus, serving) == 0


async def test_a_bug_in_one_delivery_does_not_stop_the_others(bus: MemoryBus) -> None:
    done: set[str] = set()

    async def handler(delivery: Delivery) -> None:
        message = decode(delivery.body)
        assert isinstance(message, CancelJob)
        if message.job_id == "job-0":
            raise LookupError("a bug")
        done.add(message.job_id)

    await serve(bus, QUEUE, prefetch=2, handler=handler, clock=LeapingClock())
    await publish(bus, 10)
    await until(lambda: len(done) == 9)


async def test_a_delivery_that_went_stale_is_left_alone(broker: MemoryBroker, bus: MemoryBus) -> None:
    entered, gate = 0, asyncio.Event()

    async def handler(_: Delivery) -> None:
        nonlocal entered
        entered += 1
        await gate.wait()

    serving = await serve(bus, QUEUE, prefetch=1, handler=handler, clock=LeapingClock())
    await publish(bus)
    await until(lambda: entered == 1)
    broker.drop_connections()
    await until(lambda: entered == 2)
    gate.set()
    await until(lambda: serving.in_flight == 0)
    assert entered == 2
    assert await remaining(bus, serving) == 0


async def test_closing_lets_handlers_finish_within_the_grace(bus: MemoryBus) -> None:
    gate = asyncio.Event()

    async def handler(_: Delivery) -> None:
        await gate.wait()

    serving = await serve(bus, QUEUE, prefetch=2, handler=handler, clock=SystemClock())
    await publish(bus, 3)
    await until(lambda: serving.in_flight == 2)
    closing = asyncio.create_task(serving.close(grace_s=WAIT_S))
    await until(lambda: not serving.live)
    gate.set()
    await closing
    assert await bus.depth(QUEUE) == 1


async def test_closing_gives_back_what_is_not_finished(bus: MemoryBus) -> None:
    cancelled = False

    async def handler(_: Delivery) -> None:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    serving = await serve(bus, QUEUE, prefetch=2, handler=handler, clock=SystemClock())
    await publish(bus)
    await until(lambda: serving.in_flight == 1)
    await serving.close(grace_s=0.01)
    assert cancelled
    assert await bus.depth(QUEUE) == 1


async def test_closing_does_not_wait_for_a_server_that_is_away(bus: MemoryBus) -> None:
    tried = asyncio.Event()

    async def handler(_: Delivery) -> None:
        tried.set()
        raise UnavailableError("the database is away")

    serving = await serve(bus, QUEUE, prefetch=1, handler=handler, clock=SystemClock())
    await publish(bus)
    await tried.wait()
    async with asyncio.timeout(WAIT_S):
        await serving.close(grace_s=10 * WAIT_S)
    assert await bus.depth(QUEUE) == 1
