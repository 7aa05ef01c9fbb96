"""The writer put together, and the schema it keeps."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from sqlalchemy import Connection, inspect
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.bus.memory import MemoryBroker, MemoryBus
from parallax.clock import SystemClock
from parallax.contracts.heartbeat import ExecutorHeartbeat
from parallax.contracts.messages import BatchCompleted, CloseBatch, InspectBatch, JobStarted
from parallax.contracts.outcomes import Counts, ErrorInfo, ExecutionStatus
from parallax.contracts.routing import BATCHES, DEAD_LETTERS, EVENTS, FACTS, HEARTBEATS, PROGRESS
from parallax.health import Health
from results import app, tables
from results.settings import Settings
from tests.fakes.facts import REGIONS, every, plan
from tests.harness.results import Inbox, eventually, results_engine, rows

NOW = datetime(2026, 11, 23, 13, 0, tzinfo=UTC)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with results_engine(database_url) as engine:
        yield engine


@asynccontextmanager
async def running(engine: AsyncEngine, broker: MemoryBroker) -> AsyncIterator[Health]:
    bus = MemoryBus(broker)
    async with app.running(bus=bus, engine=engine, clock=SystemClock(), settings=Settings(grace_s=30)) as health:
        yield health


async def test_every_queue_of_results_is_served(engine: AsyncEngine) -> None:
    broker = MemoryBroker(REGIONS)
    bus, signals = MemoryBus(broker), await Inbox.of(broker, PROGRESS)
    full, closed = plan(), plan(question_index=1)
    error = ErrorInfo(error_class="cancelled", code="cancelled", message="by user", retryable=False)
    heartbeat = ExecutorHeartbeat(
        executor_id="us-1", region="us", budget=10, running=(), models=(), endpoint_state="ready", started_at=NOW,
        sent_at=NOW,
    )  # fmt: skip

    async with running(engine, broker) as health:
        consumed = {"facts", "events", "batches", "heartbeats"}
        assert set(await health.check()) == {"broker", "database", "ledger", "handlers", *consumed}
        assert all((await health.check()).values())
        await bus.publish(*every(full))
        assert await signals.next() == BatchCompleted(batch=full.ref, counts=Counts(completed=6))
        await bus.publish(CloseBatch(batch=closed, status=ExecutionStatus.CANCELLED, error=error, closed_at=NOW))
        assert await signals.next() == BatchCompleted(batch=closed.ref, counts=Counts(cancelled=6))
        await bus.publish(InspectBatch(batch=full), JobStarted(job_id="job-1", started_at=NOW), heartbeat)
        assert await signals.next() == BatchCompleted(batch=full.ref, counts=Counts(completed=6))

        async def projected() -> bool:
            stored = "SELECT 1 AS n FROM results.jobs, results.executors WHERE status = 'running'"
            return len(await rows(engine, stored)) == 1

        await eventually(projected)

    assert not any(value for name, value in (await health.check()).items() if name in consumed)
    assert [broker.depth(queue) for queue in (FACTS, BATCHES, EVENTS, HEARTBEATS)] == [0, 0, 0, 0]


async def test_messages_nobody_can_read_are_dead_lettered(engine: AsyncEngine) -> None:
    broker = MemoryBroker(REGIONS)
    bus, dead = MemoryBus(broker), await Inbox.of(broker, DEAD_LETTERS)
    queues = (FACTS, BATCHES, EVENTS, HEARTBEATS)

    async with running(engine, broker):
        for queue in queues:
            await bus.publish_raw(queue, b'{"kind": "execution_task"}')
        refused = [await dead.next_delivery() for _ in queues]

    assert {str(delivery.headers["x-parallax-queue"]) for delivery in refused} == {queue.name for queue in queues}


async def test_kinds_of_a_newer_version_are_dropped_as_news_and_kept_as_commands_and_facts(
    engine: AsyncEngine,
) -> None:
    broker = MemoryBroker(REGIONS)
    bus, dead = MemoryBus(broker), await Inbox.of(broker, DEAD_LETTERS)
    queues = (EVENTS, HEARTBEATS, FACTS, BATCHES)

    async with running(engine, broker):
        for queue in queues:
            await bus.publish_raw(queue, b'{"kind": "from_tomorrow"}')
        refused = [await dead.next_delivery() for _ in range(2)]

    assert {str(delivery.headers["x-parallax-queue"]) for delivery in refused} == {FACTS.name, BATCHES.name}
    assert [broker.depth(queue) for queue in queues] == [0, 0, 0, 0]
    assert dead.empty


async def test_replicas_share_the_work(engine: AsyncEngine) -> None:
    broker = MemoryBroker(REGIONS)
    signals = await Inbox.of(broker, PROGRESS)
    plans = [plan(question_index=index, models=1) for index in range(50)]

    async with running(engine, broker), running(engine, broker):
        await MemoryBus(broker).publish(*[fact for each in plans for fact in every(each)])
        for _ in plans:
            await signals.next()

    stored = await rows(engine, "SELECT recorded FROM results.batches")
    assert [each["recorded"] for each in stored] == [3] * 50


def first_word(sql_type: str) -> str:
    """The type without its collation or time zone, which the database says in its own words."""
    return sql_type.split(maxsplit=1)[0]


async def test_the_tables_are_what_the_migrations_made(engine: AsyncEngine) -> None:
    def columns(connection: Connection) -> dict[str, dict[str, tuple[str, bool]]]:
        found = inspect(connection)
        return {
            name: {
                column["name"]: (first_word(str(column["type"])), bool(column["nullable"]))
                for column in found.get_columns(name, schema=tables.SCHEMA)
            }
            for name in found.get_table_names(schema=tables.SCHEMA)
            if name != "alembic_version"
        }

    async with engine.connect() as connection:
        made = await connection.run_sync(columns)

    described = {
        table.name: {
            column.name: (first_word(column.type.compile(engine.dialect)), bool(column.nullable))
            for column in table.columns
        }
        for table in tables.metadata.tables.values()
    }
    assert made == described
