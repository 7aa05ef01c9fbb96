"""The consumer of facts on PostgreSQL and the memory bus: what is signalled, acknowledged, refused and given back."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.bus import letters
from parallax.bus.memory import MemoryBroker, MemoryBus
from parallax.clock import Clock, SystemClock
from parallax.contracts.messages import BatchCompleted, Message, encode
from parallax.contracts.outcomes import Counts
from parallax.contracts.plan import BatchPlan
from parallax.contracts.routing import DEAD_LETTERS, FACTS, PROGRESS
from parallax.errors import UnavailableError
from results.recorder import HOLD_LIMIT_S, Recorder
from results.substitutes import REFUSED
from tests.fakes.clock import FastClock
from tests.fakes.facts import REGIONS, every, observed, plan
from tests.harness.results import Inbox, eventually, results_engine, row, rows


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with results_engine(database_url) as engine:
        yield engine


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(REGIONS)


@asynccontextmanager
async def recording(
    broker: MemoryBroker, engine: AsyncEngine, *, clock: Clock | None = None, bus: MemoryBus | None = None
) -> AsyncIterator[Recorder]:
    recorder = Recorder(bus=bus or MemoryBus(broker), engine=engine, clock=clock or SystemClock())
    await recorder.start()
    yield recorder
    await recorder.close(grace_s=30)


def live(recorder: Recorder) -> bool:
    return recorder.live


def signal(batch: BatchPlan, **counts: int) -> BatchCompleted:
    return BatchCompleted(batch=batch.ref, counts=Counts(**counts))


async def count(engine: AsyncEngine) -> int:
    return int((await row(engine, "SELECT count(*) AS n FROM results.executions"))["n"])


async def test_facts_are_recorded_signalled_and_acknowledged(broker: MemoryBroker, engine: AsyncEngine) -> None:
    batches = [plan(question_index=index) for index in range(200)]
    signals = await Inbox.of(broker, PROGRESS)
    async with recording(broker, engine):
        for batch in batches:
            await MemoryBus(broker).publish(*every(batch))
        received = [await signals.next() for _ in batches]

    assert received == [signal(batch, completed=6) for batch in batches]
    assert signals.empty
    assert broker.depth(FACTS) == 0
    assert await count(engine) == 1200


async def test_a_redelivered_fact_of_a_full_batch_signals_again(broker: MemoryBroker, engine: AsyncEngine) -> None:
    batch = plan(models=1)
    signals = await Inbox.of(broker, PROGRESS)
    async with recording(broker, engine):
        await MemoryBus(broker).publish(*every(batch))
        assert await signals.next() == signal(batch, completed=3)
        await MemoryBus(broker).publish(observed(batch, batch.cells[0]))
        assert await signals.next() == signal(batch, completed=3)

    assert await count(engine) == 3


class Dying(MemoryBus):
    """A client whose process dies when it is about to signal."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.dying = asyncio.Event()

    async def publish(self, *messages: Message) -> None:
        self.dying.set()
        await asyncio.Event().wait()


async def test_a_crash_between_commit_and_acknowledgement_loses_and_doubles_nothing(
    broker: MemoryBroker, engine: AsyncEngine
) -> None:
    batch = plan(models=1)
    await MemoryBus(broker).publish(*every(batch))
    bus = Dying(broker)
    doomed = Recorder(bus=bus, engine=engine, clock=SystemClock())
    await doomed.start()
    await bus.dying.wait()
    assert await count(engine) == 3

    await doomed.close()
    assert broker.depth(FACTS) == 3
    signals = await Inbox.of(broker, PROGRESS)
    async with recording(broker, engine):
        assert await signals.next() == signal(batch, completed=3)

    assert broker.depth(FACTS) == 0
    assert (await row(engine, "SELECT recorded FROM results.batches"))["recorded"] == 3


async def test_two_recorders_share_the_work(broker: MemoryBroker, engine: AsyncEngine) -> None:
    batches = [plan(question_index=index, models=1) for index in range(100)]
    signals = await Inbox.of(broker, PROGRESS)
    async with recording(broker, engine), recording(broker, engine):
        await MemoryBus(broker).publish(*[fact for batch in batches for fact in every(batch)])
        received = {(await signals.next()).model_dump_json() for _ in batches}

    assert received == {signal(batch, completed=3).model_dump_json() for batch in batches}
    assert await count(engine) == 300


async def test_a_lost_connection_in_mid_flush_is_harmless(broker: MemoryBroker, engine: AsyncEngine) -> None:
    batch = plan(models=1)
    signals = await Inbox.of(broker, PROGRESS)
    async with recording(broker, engine):
        await MemoryBus(broker).publish(*every(batch))
        await signals.next()
        await MemoryBus(broker).publish(*every(plan(question_index=1, models=1)))
        await asyncio.sleep(0)
        broker.drop_connections()
        await eventually(lambda: recorded(engine, 6))

    assert broker.depth(FACTS) == 0


async def recorded(engine: AsyncEngine, expected: int) -> bool:
    return await count(engine) == expected


# --- facts that cannot be recorded


ELSEWHERE = plan("job-9", models=1)


def broken(**fields: Any) -> bytes:
    return json.dumps(json.loads(encode(observed(ELSEWHERE, ELSEWHERE.cells[0]))) | fields).encode()


async def test_malformed_facts_are_dead_lettered_and_spare_their_neighbours(
    broker: MemoryBroker, engine: AsyncEngine
) -> None:
    batches = [plan(question_index=index, models=1) for index in range(4)]
    stolen = BatchPlan(ref=batches[0].ref, question_id="another-question", cells=batches[0].cells)
    poison = {
        b"{]": "is no fact",
        broken(sample=1): "is not that of",
        broken(output={"text": "a\0b"}): "NUL",
        broken(usage={"prompt_tokens": 10**30, "completion_tokens": 1}): "out of range",
        broken(batch={"job_id": "job-9", "lane": "all", "question_index": 2**31}): "less_than",
        encode(observed(stolen, stolen.cells[1])): "executions_in_order",
    }
    bus = MemoryBus(broker)
    await bus.publish(*every(batches[0]))
    for body, batch in zip(poison, [*batches[1:], *batches[1:]], strict=True):
        await bus.publish_raw(FACTS, body)
        await bus.publish(*every(batch))
    signals, dead = await Inbox.of(broker, PROGRESS), await Inbox.of(broker, DEAD_LETTERS)

    async with recording(broker, engine):
        refused = [await dead.next_delivery() for _ in poison]
        full = {(await signals.next()).model_dump_json() for _ in batches}

    reasons = {delivery.body: str(delivery.headers[letters.REASON_HEADER]) for delivery in refused}
    assert set(reasons) == set(poison)
    for body, reason in poison.items():
        assert reason in reasons[body]
    assert full == {signal(batch, completed=3).model_dump_json() for batch in batches}
    assert broker.depth(FACTS) == 0
    # Two of the refused facts name one execution of theirs, and say what no database stores of how it ended.
    strangers = await rows(engine, "SELECT status, observed FROM results.executions WHERE job_id <> 'job-1'")
    assert strangers == [{"status": "failed", "observed": False}]


@pytest.mark.parametrize(
    "damage", [{"output": {"text": "a\0b"}}, {"usage": {"prompt_tokens": 10**30, "completion_tokens": 1}}]
)
async def test_a_refused_fact_does_not_keep_its_batch_waiting(
    broker: MemoryBroker, engine: AsyncEngine, damage: dict[str, Any]
) -> None:
    batch = plan(models=1)
    whole, *others = every(batch)
    signals, dead = await Inbox.of(broker, PROGRESS), await Inbox.of(broker, DEAD_LETTERS)
    async with recording(broker, engine):
        await MemoryBus(broker).publish(*others)
        await MemoryBus(broker).publish_raw(FACTS, json.dumps(json.loads(encode(whole)) | damage).encode())
        assert await signals.next() == signal(batch, completed=2, failed=1)
        await dead.next_delivery()
        found = await row(engine, "SELECT observed, error FROM results.executions WHERE status = 'failed'")
        assert (found["observed"], found["error"]["code"]) == (False, REFUSED)
        assert "refused" in found["error"]["message"]
        await MemoryBus(broker).publish(whole)  # repaired by hand
        assert await signals.next() == signal(batch, completed=3)


# --- servers that are away


class Outage:
    """Lets connections to the database fail."""

    def __init__(self) -> None:
        self.attempts = 0


@contextmanager
def away(engine: AsyncEngine) -> Iterator[Outage]:
    """The database refuses new connections; those that exist are gone."""
    outage = Outage()

    def refuse(*_: object) -> None:
        outage.attempts += 1
        raise ConnectionRefusedError("connection refused")

    event.listen(engine.sync_engine, "do_connect", refuse)
    try:
        yield outage
    finally:
        event.remove(engine.sync_engine, "do_connect", refuse)


async def test_facts_are_held_while_the_database_is_away(broker: MemoryBroker, engine: AsyncEngine) -> None:
    batch = plan(models=1)
    signals = await Inbox.of(broker, PROGRESS)
    await engine.dispose()
    async with recording(broker, engine):
        with away(engine) as outage:
            await MemoryBus(broker).publish(*every(batch))

            async def tried_twice() -> bool:
                return outage.attempts >= 2

            await eventually(tried_twice)
            assert broker.depth(FACTS) == 0
        assert await signals.next() == signal(batch, completed=3)


async def test_a_long_outage_costs_one_delivery_however_long_it_is(broker: MemoryBroker, engine: AsyncEngine) -> None:
    batch = plan(models=1)
    clock = FastClock()
    signals = await Inbox.of(broker, PROGRESS)
    await engine.dispose()
    async with recording(broker, engine, clock=clock) as recorder:
        with away(engine) as outage:
            first, *rest = every(batch)
            await MemoryBus(broker).publish(first)

            async def tried() -> bool:
                return outage.attempts > 0

            await eventually(tried)
            await MemoryBus(broker).publish(*rest)

            async def ages_have_passed() -> bool:
                return clock.elapsed_s > 20 * HOLD_LIMIT_S

            await eventually(ages_have_passed)
            assert broker.depth(FACTS) == 3
            assert live(recorder) is False
            assert not recorder._waiting
        assert await signals.next() == signal(batch, completed=3)
        assert live(recorder) is True

    assert (await Inbox.of(broker, DEAD_LETTERS)).empty


class EndlessPauses(SystemClock):
    """A clock on which whoever sleeps is never woken."""

    def __init__(self) -> None:
        self.asleep = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.asleep.set()
        await asyncio.Event().wait()


async def test_closing_during_an_outage_gives_the_facts_back_at_once(broker: MemoryBroker, engine: AsyncEngine) -> None:
    await engine.dispose()
    clock = EndlessPauses()
    recorder = Recorder(bus=MemoryBus(broker), engine=engine, clock=clock)
    with away(engine):
        await recorder.start()
        await MemoryBus(broker).publish(*every(plan(models=1)))
        await clock.asleep.wait()
        async with asyncio.timeout(15):
            await recorder.close(grace_s=60)

    assert broker.depth(FACTS) == 3
    assert not recorder.live


class Unconfirming(MemoryBus):
    """A client whose first signals are not confirmed."""

    def __init__(self, broker: MemoryBroker, failures: int) -> None:
        super().__init__(broker)
        self.failures = failures

    async def publish(self, *messages: Message) -> None:
        if self.failures:
            self.failures -= 1
            raise UnavailableError("not confirmed in time")
        await super().publish(*messages)


async def test_a_fact_is_not_acknowledged_before_its_signal_is_confirmed(
    broker: MemoryBroker, engine: AsyncEngine
) -> None:
    batch = plan(models=1)
    signals = await Inbox.of(broker, PROGRESS)
    await MemoryBus(broker).publish(*every(batch))
    async with recording(broker, engine, bus=Unconfirming(broker, failures=3), clock=FastClock()):
        assert await signals.next() == signal(batch, completed=3)

    assert broker.depth(FACTS) == 0


async def test_closing_writes_what_is_at_hand(broker: MemoryBroker, engine: AsyncEngine) -> None:
    batches = [plan(question_index=index) for index in range(60)]
    async with recording(broker, engine):
        await MemoryBus(broker).publish(*[fact for batch in batches for fact in every(batch)])
        await eventually(lambda: nothing_waits(broker))

    assert broker.depth(FACTS) == 0
    assert await count(engine) == 360


async def nothing_waits(broker: MemoryBroker) -> bool:
    return broker.depth(FACTS) == 0
