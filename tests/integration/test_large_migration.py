"""A ledger of some hundred thousand rows is migrated while a writer keeps writing to it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from importlib.resources import as_file, files

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.db import revisions
from parallax.db.engine import create_engine
from parallax.db.migrations import check, known, migrate
from results import ledger
from results.facts import read_news
from tests.fakes.facts import START, every, plan
from tests.harness.results import eventually, row

ROWS = 300_000
LONGEST_WRITE_S = 5.0
"""A write takes milliseconds, and 0.5 s where it queues behind a revision; this machine may be busy."""

pytestmark = pytest.mark.slow

_FILL = """
    INSERT INTO results.executions (
        execution_id, job_id, lane, question_index, question_id, model_id, model, region, sample, status, observed,
        replaced_status, messages, output, attempts, completed_at)
    SELECT gen_random_uuid(), 'old', 'all', n, 'q' || n, 'm', 'm', 'eu', 0, 'completed', true,
        CASE WHEN n % 2 = 0 THEN 'timed_out' END, '[]', '{"text": "an answer"}', '[]', now()
    FROM generate_series(1, :rows) AS n
"""
_WRITE = text("""
    INSERT INTO results.executions (
        execution_id, job_id, lane, question_index, question_id, model_id, model, region, sample, status, observed,
        messages, attempts, completed_at)
    VALUES (gen_random_uuid(), 'new', 'all', :n, 'q', 'm', 'm', 'eu', 0, 'completed', true, '[]', '[]', now())
""")


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, application_name="test", pool_size=5)
    yield engine
    await engine.dispose()


async def before_its_indexes(engine: AsyncEngine) -> None:
    """Make a schema as of its second revision, with a large ledger."""
    with as_file(files("results") / "migrations") as folder:
        for revision in known("results", "results")[:2]:
            step = partial(revisions.apply, folder=folder, schema="results", number=revision.number)
            async with engine.connect() as connection:
                await connection.run_sync(step)
    async with engine.begin() as connection:
        await connection.execute(text(_FILL), {"rows": ROWS})


async def keep_writing(engine: AsyncEngine, until: Callable[[], bool], waits: list[float]) -> None:
    """Write one row after the other, and note how long each took."""
    while not until():
        began = time.monotonic()
        async with engine.begin() as connection:
            await connection.execute(_WRITE, {"n": len(waits)})
        waits.append(time.monotonic() - began)


async def test_no_write_waits_for_the_migration_of_a_large_ledger(
    engine: AsyncEngine, record_property: Callable[[str, object], None]
) -> None:
    await before_its_indexes(engine)
    done = asyncio.Event()
    waits: list[float] = []
    writing = asyncio.create_task(keep_writing(engine, done.is_set, waits))

    async def is_writing() -> bool:
        return bool(waits)

    await eventually(is_writing)
    before = len(waits)
    applied = await migrate(engine, package="results", schema="results")
    during = len(waits) - before
    done.set()
    await writing

    assert [revision.number for revision in applied[:2]] == ["0003", "0004"]
    assert during > 5, "it was written to all the while"
    record_property("longest_wait_s", max(waits))
    assert max(waits) < LONGEST_WRITE_S
    await check(engine, package="results", schema="results")
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'results.executions_replaced'::regclass"
    assert (await row(engine, valid))["indisvalid"]
    facts = [read_news(fact.model_dump_json().encode()) for fact in every(plan("job-1"))]
    assert len(await ledger.record(engine, facts, START)) == 1
    assert (await row(engine, "SELECT count(*) AS n FROM results.executions WHERE job_id = 'new'"))["n"] == len(waits)
