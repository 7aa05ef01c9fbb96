"""A database that answers and refuses: everything waits for it, nothing is given up, and the service says so."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.bus.memory import MemoryBroker, MemoryBus, MemoryConsumption
from parallax.bus.port import Delivery
from parallax.clock import Clock, SystemClock
from parallax.contracts.messages import BatchCompleted, CloseBatch, JobStarted
from parallax.contracts.outcomes import Counts, ErrorInfo, ExecutionStatus
from parallax.contracts.routing import BATCHES, DEAD_LETTERS, EVENTS, FACTS, HEARTBEATS, PROGRESS, Queue
from parallax.db.engine import Limits, create_engine
from parallax.health import Health
from results import app
from results.recorder import HOLD_LIMIT_S
from results.settings import Settings
from tests.fakes.clock import FastClock
from tests.fakes.facts import REGIONS, every, plan
from tests.harness.postgres import execute
from tests.harness.results import Inbox, eventually, results_engine, rows

WRITER = "writer under test"
QUICK = Limits(lock_s=0.6, statement_s=1.0, command_s=5.0, idle_transaction_s=20)
NOW = datetime(2026, 11, 23, 13, 0, tzinfo=UTC)
_TRIGGER = "CREATE TRIGGER trouble BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION trouble()"
TABLES = ("results.executions", "results.events", "results.jobs", "results.batches", "results.executors")


@dataclass(frozen=True)
class Trouble:
    """What an administrator, or a full disk, does to the database; and how it is mended."""

    begin: tuple[str, ...]
    end: tuple[str, ...] = ()
    terminates: bool = False
    lasts: bool = True


def triggered(body: str) -> Trouble:
    function = f"CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NEW; END $$"
    return Trouble((function, *(_TRIGGER.format(table=table) for table in TABLES)), ("DROP FUNCTION trouble CASCADE",))


TROUBLES = {
    "read-only": Trouble(
        ('ALTER DATABASE "{name}" SET default_transaction_read_only = on',),
        ('ALTER DATABASE "{name}" RESET default_transaction_read_only',),
        terminates=True,
    ),
    "no connections": Trouble(
        ('ALTER DATABASE "{name}" ALLOW_CONNECTIONS false',),
        ('ALTER DATABASE "{name}" ALLOW_CONNECTIONS true',),
        terminates=True,
    ),
    "backends ended": Trouble((), terminates=True, lasts=False),
    "statements too slow": triggered("PERFORM pg_sleep(5)"),
    "disk full": triggered("RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'"),
    "I/O error": triggered("RAISE EXCEPTION 'could not read block' USING ERRCODE = '58030'"),
    "tables of another version": Trouble(
        tuple(f"ALTER TABLE {table} RENAME TO {table.partition('.')[2]}_away" for table in TABLES),
        tuple(f"ALTER TABLE {table}_away RENAME TO {table.partition('.')[2]}" for table in TABLES),
    ),
}


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with results_engine(database_url) as engine:
        yield engine


class Counting(MemoryBus):
    """A bus that remembers how often its deliveries had been delivered before."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.redelivered = 0

    async def consume(self, queue: Queue, *, prefetch: int, handler: Callable[[Delivery], None]) -> MemoryConsumption:
        def counted(delivery: Delivery) -> None:
            self.redelivered = max(self.redelivered, delivery.delivery_count)
            handler(delivery)

        return await super().consume(queue, prefetch=prefetch, handler=counted)


@asynccontextmanager
async def writer(url: str, bus: MemoryBus, clock: Clock | None = None) -> AsyncIterator[Health]:
    engine = create_engine(url, application_name=WRITER, pool_size=6, limits=QUICK)
    try:
        async with app.running(
            bus=bus, engine=engine, clock=clock or SystemClock(), settings=Settings(grace_s=30)
        ) as health:
            yield health
    finally:
        await engine.dispose()


async def strike(server_url: str, database_url: str, trouble: Trouble, *, begins: bool) -> None:
    """Let trouble begin or end, as an administrator who is bound by none of it."""
    name = urlsplit(database_url).path.removeprefix("/")
    statements = [each.format(name=name) for each in (trouble.begin if begins else trouble.end)]
    outside = all(each.startswith("ALTER DATABASE") for each in statements)
    await execute(server_url if outside else database_url, *statements, read_only=False)
    if trouble.terminates and begins:
        ended = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{WRITER}'"
        await execute(server_url, ended)


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES.keys())
async def test_everything_waits_for_a_database_that_refuses(
    engine: AsyncEngine, database_url: str, postgres_url: str, trouble: Trouble
) -> None:
    broker = MemoryBroker(REGIONS)
    bus = Counting(broker)
    signals, dead = await Inbox.of(broker, PROGRESS), await Inbox.of(broker, DEAD_LETTERS)
    batches = [plan(question_index=index) for index in range(8)]
    closed = plan(question_index=90)
    error = ErrorInfo(error_class="cancelled", code="cancelled", message="by user", retryable=False)

    async with writer(database_url, bus) as health:
        await bus.publish(*every(batches[0]))
        await signals.next()
        await engine.dispose()
        await strike(postgres_url, database_url, trouble, begins=True)
        for batch in batches[1:]:
            await bus.publish(*every(batch))
        await bus.publish(
            CloseBatch(batch=closed, status=ExecutionStatus.CANCELLED, error=error, closed_at=NOW),
            JobStarted(job_id="job-1", started_at=NOW),
        )
        if trouble.lasts:
            await asyncio.sleep(2)  # while nothing can be written, there is no event to wait for
            assert signals.empty
            await strike(postgres_url, database_url, trouble, begins=False)
        told = {(await signals.next()).model_dump_json() for _ in batches}
        await settled(broker)
        await is_ready(health)

    expected = {BatchCompleted(batch=batch.ref, counts=Counts(completed=6)) for batch in batches[1:]}
    expected.add(BatchCompleted(batch=closed.ref, counts=Counts(cancelled=6)))
    assert told == {each.model_dump_json() for each in expected}
    assert dead.empty
    assert bus.redelivered == 0
    stored = await rows(engine, "SELECT count(*) AS n FROM results.executions")
    assert stored == [{"n": 54}]
    assert await rows(engine, "SELECT status FROM results.jobs") == [{"status": "running"}]


async def settled(broker: MemoryBroker) -> None:
    async def nothing_waits() -> bool:
        return not any(broker.depth(queue) for queue in (FACTS, BATCHES, EVENTS, HEARTBEATS))

    await eventually(nothing_waits)


async def is_ready(health: Health) -> None:
    async def ready() -> bool:
        return all((await health.check()).values())

    await eventually(ready)


@pytest.mark.parametrize("name", ["read-only", "disk full"])
async def test_a_long_refusal_shows_in_health_and_costs_one_delivery(
    engine: AsyncEngine, database_url: str, postgres_url: str, name: str
) -> None:
    broker, clock, trouble = MemoryBroker(REGIONS), FastClock(), TROUBLES[name]
    bus = Counting(broker)
    signals, dead = await Inbox.of(broker, PROGRESS), await Inbox.of(broker, DEAD_LETTERS)
    batches = [plan(question_index=index) for index in range(3)]
    async with writer(database_url, bus, clock) as health:
        await strike(postgres_url, database_url, trouble, begins=True)
        for batch in batches:
            await bus.publish(*every(batch))

        async def ages_have_passed() -> bool:
            return clock.elapsed_s > 20 * HOLD_LIMIT_S

        await eventually(ages_have_passed)
        answers = await health.check()
        assert (answers["database"], answers["ledger"], answers["facts"]) == (True, False, True)
        assert health.lost(answers) == [], "the database answers: a restart would only cost another delivery"
        assert broker.depth(FACTS) == 18, "the facts are back in the queue, for any replica that can write"
        await strike(postgres_url, database_url, trouble, begins=False)
        for _ in batches:
            await signals.next()
        await is_ready(health)
    assert bus.redelivered == 1
    assert dead.empty


async def test_handlers_that_are_refused_show_in_health(
    engine: AsyncEngine, database_url: str, postgres_url: str
) -> None:
    broker, clock, trouble = MemoryBroker(REGIONS), FastClock(), TROUBLES["disk full"]
    async with writer(database_url, Counting(broker), clock) as health:
        await strike(postgres_url, database_url, trouble, begins=True)
        await MemoryBus(broker).publish(JobStarted(job_id="job-1", started_at=NOW))

        async def unready() -> bool:
            answers = await health.check()
            return not answers["handlers"] and health.lost(answers) == []

        await eventually(unready)
        await strike(postgres_url, database_url, trouble, begins=False)
        await is_ready(health)
    assert await rows(engine, "SELECT status FROM results.jobs") == [{"status": "running"}]


async def test_the_recorder_is_unready_when_facts_wait_and_none_is_written(
    engine: AsyncEngine, database_url: str
) -> None:
    broker = MemoryBroker(REGIONS)
    stalled: list[Any] = []
    async with writer(database_url, Counting(broker), FastClock()) as health, engine.begin() as holder:
        await holder.exec_driver_sql("LOCK TABLE results.executions")
        await MemoryBus(broker).publish(*every(plan()))

        async def unready() -> bool:
            stalled.append(await health.check())
            return not stalled[-1]["ledger"]

        await eventually(unready)
    assert stalled[-1]["database"]
