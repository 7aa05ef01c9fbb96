"""Advancing a batch costs the same at the end of a long job as at its start."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.bus.memory import MemoryBroker, MemoryBus
from parallax.clock import SystemClock
from parallax.contracts.messages import BatchCompleted
from parallax.contracts.outcomes import Counts
from parallax.contracts.plan import BatchRef
from parallax.db.engine import create_engine
from parallax.db.migrations import migrate
from tests.integration.dispatcher_stage import CATALOG, bare_handlers, job_document, submit_by_hand

QUESTIONS = 2_000


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, application_name="test", pool_size=8)
    yield engine
    await engine.dispose()


@contextmanager
def statements(engine: AsyncEngine) -> Iterator[list[str]]:
    """The statements that run inside the block."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        seen.append(" ".join(statement.split()))

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine.sync_engine, "before_cursor_execute", note)


async def test_advancing_takes_the_same_statements_and_the_same_bytes(engine: AsyncEngine) -> None:
    await migrate(engine, package="dispatcher", schema="dispatcher")
    bus = MemoryBus(MemoryBroker(CATALOG.regions))
    handlers = bare_handlers(bus, engine, SystemClock())
    await submit_by_hand(bus, handlers, "job", job_document(QUESTIONS))

    async def advance(index: int) -> list[str]:
        ref = BatchRef(job_id="job", lane="all", question_index=index)
        with statements(engine) as seen:
            await handlers.batch_completed(BatchCompleted(batch=ref, counts=Counts(completed=2)))
        return seen

    early, early_bytes = await advance(0), await row_bytes(engine)
    await skip_to(engine, QUESTIONS - 2)
    late, late_bytes = await advance(QUESTIONS - 2), await row_bytes(engine)
    assert early == late
    assert len(early) == 2, "lock the job and read two questions, write the job"
    assert late_bytes - early_bytes < 64


async def row_bytes(engine: AsyncEngine) -> int:
    """The size of the job's row."""
    async with engine.connect() as connection:
        query = "SELECT length(CAST(template AS text)) + length(CAST(state AS text)) FROM dispatcher.jobs"
        return int((await connection.execute(text(query))).scalar_one())


async def skip_to(engine: AsyncEngine, index: int) -> None:
    """Pretend that the job has reached a question."""
    async with engine.begin() as connection:
        state = (await connection.execute(text("SELECT CAST(state AS text) FROM dispatcher.jobs"))).scalar_one()
        moved = json.loads(state)
        moved["lanes"][0]["batch"]["index"] = index
        moved["tally"]["completed"] = index * 2
        moved["batches_completed"] = index
        await connection.execute(
            text("UPDATE dispatcher.jobs SET state = CAST(:state AS jsonb)"), {"state": json.dumps(moved)}
        )


STEADY = (
    "SELECT id FROM dispatcher.jobs WHERE id = 'job' FOR UPDATE",
    "SELECT id, text FROM dispatcher.questions WHERE job_id = 'job' AND question_index BETWEEN 7 AND 8",
    "SELECT id FROM dispatcher.jobs WHERE due_at <= now() ORDER BY due_at LIMIT 10",
    "SELECT count(*) FROM dispatcher.jobs WHERE phase IN ('running', 'ending')",
    "SELECT id FROM dispatcher.jobs WHERE phase = 'queued' ORDER BY position LIMIT 1 FOR UPDATE SKIP LOCKED",
    "SELECT size FROM dispatcher.chosen_batches WHERE job_id = 'job' AND lane = 'us' AND question_index > 7 LIMIT 1",
)


@pytest.mark.parametrize("statement", STEADY)
async def test_what_runs_all_the_time_uses_an_index(engine: AsyncEngine, statement: str) -> None:
    await migrate(engine, package="dispatcher", schema="dispatcher")
    async with engine.begin() as connection:
        await connection.execute(text("SET LOCAL enable_seqscan = off"))
        plan = "\n".join((await connection.execute(text("EXPLAIN " + statement))).scalars())
    assert "Index" in plan
    assert "Seq Scan" not in plan
