"""Services go on, and start, on a schema that a newer version has extended: every table has got a column more."""

from pathlib import Path

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.clock import SystemClock
from parallax.contracts.messages import CancelJob
from parallax_cli.mock_script import Step
from results.api.app import create_api
from results.api.settings import ApiSettings
from tests.fakes.endpoint import FakeEndpoint
from tests.harness.results import eventually, row, rows
from tests.integration.whole_stage import CATALOG, REGIONS, Whole, job, whole

ROOT = Path(__file__).parents[2]
_TABLES = """
    SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables
    WHERE schemaname IN ('dispatcher', 'results') AND tablename <> 'alembic_version'
"""


async def extend(engine: AsyncEngine) -> None:
    """Add columns as an expand revision would: one of them in every row, one not."""
    names = [found["name"] for found in await rows(engine, _TABLES)]
    assert {"results.events", "results.batches", "results.executions", "dispatcher.jobs"} <= set(names)
    for name in names:
        async with engine.begin() as connection:
            await connection.execute(text(f"ALTER TABLE {name} ADD COLUMN tomorrow jsonb"))
            await connection.execute(text(f"ALTER TABLE {name} ADD COLUMN today text DEFAULT 'x'"))


async def ended(stage: Whole, job_id: str) -> dict[str, int]:
    """The counts of a job, once it has ended. It names its columns, as the services do."""
    counts = "SELECT counts FROM results.jobs WHERE job_id = :job_id AND finished_at IS NOT NULL"

    async def has_ended() -> bool:
        return bool(await rows(stage.engine, counts, job_id=job_id))

    await eventually(has_ended)
    found: dict[str, int] = (await row(stage.engine, counts, job_id=job_id))["counts"]
    return found


async def started(stage: Whole, job_id: str) -> None:
    """Wait until a job runs."""
    running = "SELECT 1 AS n FROM results.jobs WHERE job_id = :job_id AND status = 'running'"

    async def has_started() -> bool:
        return bool(await rows(stage.engine, running, job_id=job_id))

    await eventually(has_started)


async def work(stage: Whole, name: str) -> None:
    """A job that is answered and one that is cancelled in its middle."""
    await stage.submit(f"{name}-good", job(questions=2))
    stalling = [{"id": "q", "text": "Stall"}]
    await stage.submit(f"{name}-stalled", job(regions=["eu"]) | {"questions": stalling})
    assert (await ended(stage, f"{name}-good")) == {"completed": 18, "failed": 0, "timed_out": 0, "cancelled": 0}
    await started(stage, f"{name}-stalled")
    await stage.bus.publish(CancelJob(job_id=f"{name}-stalled"))
    assert (await ended(stage, f"{name}-stalled"))["cancelled"] == 3


async def read(stage: Whole, job_id: str) -> None:
    """What a user looks at."""
    api = create_api(engine=stage.engine, bus=stage.bus, catalog=CATALOG, clock=SystemClock(), settings=ApiSettings())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://localhost") as http:
        of_job = ("", "/executions", "/batches", "/matrix", "/summary", "/export?format=jsonl", "/events")
        for page in ("/v1/jobs", "/v1/regions", *(f"/v1/jobs/{job_id}{page}" for page in of_job)):
            response = await http.get(page)
            assert response.status_code == 200, (page, response.text)


async def test_services_at_work_do_not_mind_new_columns(database_url: str) -> None:
    stall: dict[str, tuple[Step, ...]] = {"Stall": (Step(stall_after=0),)}
    async with whole(database_url, {region: FakeEndpoint(by_prompt=stall) for region in REGIONS}) as stage:
        await work(stage, "before")
        await extend(stage.engine)
        await work(stage, "after")
        await read(stage, "before-good")
        await read(stage, "after-good")
        await stage.assert_healthy()


async def test_a_job_goes_on_while_its_tables_change(database_url: str) -> None:
    async with whole(database_url) as stage:
        await stage.submit("long", job(questions=12))
        await started(stage, "long")
        await extend(stage.engine)
        assert (await ended(stage, "long"))["completed"] == 108


@pytest.mark.parametrize("path", sorted(ROOT.glob("services/*/src/*/migrations/sql/*.sql")), ids=lambda p: p.stem)
def test_functions_carry_a_version_and_know_no_row_of_a_table(path: Path) -> None:
    body = path.read_text(encoding="utf-8")
    schema, name = path.parents[2].name, path.stem
    assert f"CREATE OR REPLACE FUNCTION {schema}.{name}(" in body
    assert name.rpartition("_v")[2].isdecimal()
    for mistake in ("SETOF", "%ROWTYPE", "::results.", "::dispatcher.", "[] ", "RETURNING *", ".* FROM results.b"):
        assert mistake not in body, mistake
