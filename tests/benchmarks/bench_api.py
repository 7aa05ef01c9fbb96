"""The query API with a million executions stored: every read endpoint's first page, and the memory of an export.

``make bench-api``, or ``python -m tests.benchmarks.bench_api [--jobs 2000] [--requests 300] [--data FOLDER]``. Each
endpoint of a job is read twice: on random ones of the jobs of 500 executions, and on the job of 100,000. The API is
a process of its own that has loaded what the service loads, and requires a key; beside each endpoint stands a plain
``SELECT`` of the same rows through asyncpg, which is the floor. With ``--data`` the filled database stays in that
folder, and the next run reads it again. ``PARALLAX_TEST_DATABASE_URL`` names a server to use instead.
"""

import argparse
import asyncio
import json
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Final, NamedTuple

import asyncpg
import httpx
import psutil

from parallax.clock import SystemClock
from parallax.db.engine import create_engine
from parallax.db.migrations import migrate
from results.api import keys
from results.tables import SCHEMA
from tests.harness.postgres import make_fast, postgres_server

QUESTIONS: Final = 50
MODELS: Final = 5
REGIONS: Final = ("us", "eu")
LARGE_JOB: Final = "large"
LARGE_QUESTIONS: Final = 10_000
EXPORT_MB: Final = 100
"""What the service may have in memory, all in all, while it exports."""
TARGET_MS: Final = 25.0
"""For the 99th percentile of a first page, on a machine that has nothing else to do."""

_PLAN: Final = {
    "barrier": "question",
    "samples": 1,
    "models": [{"model_id": f"model-{number}", "regions": list(REGIONS)} for number in range(MODELS)],
}

_JOBS: Final = """
INSERT INTO results.jobs (job_id, created_at, name, spec, plan, questions, batches, executions, retry_of, metadata,
                          submitted_at, accepted_at, started_at, finished_at, finished_reason, outcome, counts,
                          not_started)
SELECT job_id, at, 'survey ' || n % 50, '{"name": "survey"}', $4::jsonb, $3, $3, $3 * 10,
       CASE WHEN n % 4 <> 1 THEN 'job-' || n - 1 END,
       jsonb_build_object('team', n % 20), at, at, at, at + interval '1 hour',
       '{"code": "all_batches_completed", "message": "every batch is complete"}',
       CASE WHEN n % 10 = 0 THEN 'failed' ELSE 'completed' END, '{"completed": 1}', 0
  FROM (SELECT CASE WHEN $1 = '' THEN 'job-' || n ELSE $1 END AS job_id, n,
               timestamptz '2026-11-01Z' + n * interval '10 minutes' AS at
          FROM generate_series(1, $2::int) AS n) AS made
"""
_BATCHES: Final = """
INSERT INTO results.batches (job_id, lane, question_index, question_id, question, expected, completed, failed,
                             opened_at, deadline_at, completed_at)
SELECT job_id, 'all', q, 'question-' || q,
       jsonb_build_object('id', 'question-' || q, 'text', 'Question ' || q || ': ' || repeat('what and why? ', 8),
                          'tags', '[]'::jsonb, 'metadata', '{}'::jsonb),
       10, 9, 1, accepted_at, accepted_at + interval '1 hour', accepted_at
  FROM results.jobs, generate_series(0, questions - 1) AS q WHERE job_id LIKE $1
"""
_EXECUTIONS: Final = """
INSERT INTO results.executions (
    execution_id, job_id, lane, question_index, question_id, model_id, model, region, sample, status, observed,
    provider_id, messages, output, finish_reason, usage, receipt, error, attempts, started_at, completed_at)
SELECT gen_random_uuid(), job_id, 'all', q, 'question-' || q, 'model-' || m, 'smollm2-135m', r, 0,
       CASE WHEN (q + m) % 10 = 0 THEN 'failed' ELSE 'completed' END, true, 'chatcmpl-' || q,
       jsonb_build_array(
           jsonb_build_object('role', 'system', 'content', 'You are a helpful assistant based in ' || r || '.'),
           jsonb_build_object('role', 'user', 'content', 'Question ' || q || ': ' || repeat('what and why? ', 8))),
       CASE WHEN (q + m) % 10 <> 0
            THEN jsonb_build_object('text', repeat('An answer of some words. ', 12), 'refusal', NULL) END,
       'stop', '{"prompt_tokens": 40, "completion_tokens": 64}',
       jsonb_build_object('prompt_sha256', repeat('a', 64), 'output_sha256', repeat('b', 64), 'model', 'smollm2-135m',
                          'model_requested', 'smollm2-135m', 'region_claimed', r, 'provider', 'local',
                          'executor_id', r || '-1', 'parameters', '{"max_tokens": 64}'::jsonb),
       CASE WHEN (q + m) % 10 = 0 THEN
           '{"error_class": "unavailable", "code": "503", "message": "busy", "retryable": true}'::jsonb END,
       '[{"number": 1, "started_at": "2026-11-01T00:00:00Z", "duration_s": 1.5, "outcome": "ok"}]',
       at, at + (100 + (q * 37 + m * 11) % 900) * interval '1 millisecond'
  FROM (SELECT job_id, accepted_at AS at, generate_series(0, questions - 1) AS q FROM results.jobs
         WHERE job_id = ANY($1)) AS planned,
       generate_series(0, 4) AS m, unnest(ARRAY['us', 'eu']) AS r
"""


class Endpoint(NamedTuple):
    """A resource, and a plain ``SELECT`` of the rows it tells; ``$1`` is a job's id."""

    name: str
    path: str
    floor: str


_ORDER: Final = "ORDER BY question_index, model_id, region, sample"
LISTS: Final = (
    Endpoint("jobs", "/v1/jobs", "SELECT * FROM results.jobs WHERE $1 <> '' ORDER BY created_at DESC LIMIT 50"),
    Endpoint(
        "jobs?status",
        "/v1/jobs?status=failed",
        "SELECT * FROM results.jobs WHERE $1 <> '' AND status = 'failed' ORDER BY created_at DESC LIMIT 50",
    ),
    Endpoint(
        "jobs?name",
        "/v1/jobs?name=survey%207",
        """SELECT * FROM results.jobs WHERE $1 <> '' AND name LIKE '%survey 7%' ORDER BY created_at DESC LIMIT 50""",
    ),
    Endpoint(
        "jobs?metadata",
        "/v1/jobs?metadata=team%3D7",
        """SELECT * FROM results.jobs WHERE $1 <> '' AND metadata @> '{"team": 7}'
            ORDER BY created_at DESC LIMIT 50""",
    ),
    Endpoint("regions", "/v1/regions", "SELECT * FROM results.executors WHERE $1 <> ''"),
    Endpoint("catalog", "/v1/catalog", "SELECT $1"),
)
"""What is read of the whole installation."""
OF_A_JOB: Final = (
    Endpoint("job", "/v1/jobs/{job}", "SELECT * FROM results.jobs WHERE job_id = $1"),
    Endpoint("batches", "/v1/jobs/{job}/batches", "SELECT * FROM results.batches WHERE job_id = $1 LIMIT 100"),
    Endpoint(
        "executions",
        "/v1/jobs/{job}/executions",
        f"SELECT * FROM results.executions WHERE job_id = $1 {_ORDER} LIMIT 100",
    ),
    Endpoint(
        "executions?status",
        "/v1/jobs/{job}/executions?status=failed&status=timed_out",
        f"SELECT * FROM results.executions WHERE job_id = $1 AND status IN ('failed', 'timed_out') {_ORDER} LIMIT 100",
    ),
    Endpoint(
        "executions?model,region",
        "/v1/jobs/{job}/executions?model=model-3&region=eu",
        f"""SELECT * FROM results.executions
             WHERE job_id = $1 AND model_id = 'model-3' AND region = 'eu' {_ORDER} LIMIT 100""",
    ),
    Endpoint(
        "execution",
        "/v1/jobs/{job}/executions/{execution}",
        "SELECT * FROM results.executions WHERE job_id = $1 LIMIT 1",
    ),
    Endpoint(
        "matrix",
        "/v1/jobs/{job}/matrix",
        f"SELECT * FROM results.executions WHERE job_id = $1 AND question_index < 20 {_ORDER}",
    ),
    Endpoint(
        "matrix?merged",
        "/v1/jobs/{job}/matrix?merged=true",
        f"SELECT * FROM results.executions WHERE job_id = $1 AND question_index < 20 {_ORDER}",
    ),
    Endpoint(
        "summary",
        "/v1/jobs/{job}/summary",
        "SELECT model_id, region, count(*), avg(duration_s) FROM results.executions WHERE job_id = $1 GROUP BY 1, 2",
    ),
)
"""What is read of one job."""


async def fill(connection: asyncpg.Connection, jobs: int) -> None:
    """Store ``jobs`` jobs of 500 executions, and one of 100,000."""
    plan = json.dumps(_PLAN)
    await connection.execute(_JOBS, "", jobs, QUESTIONS, plan)
    await connection.execute(_JOBS, LARGE_JOB, 1, LARGE_QUESTIONS, plan)
    await connection.execute(_BATCHES, "%")
    names = [*(f"job-{number}" for number in range(1, jobs + 1)), LARGE_JOB]
    for start in range(0, len(names), 100):
        await connection.execute(_EXECUTIONS, names[start : start + 100], timeout=600)
    await connection.execute("VACUUM ANALYZE", timeout=600)


async def timed(requests: int, call: Callable[[], Awaitable[object]]) -> list[float]:
    """Milliseconds of each call, after a few that warm up."""
    for _ in range(10):
        await call()
    spans: list[float] = []
    for _ in range(requests):
        began = time.perf_counter()
        await call()
        spans.append((time.perf_counter() - began) * 1000)
    return spans


def p50(spans: Sequence[float]) -> float:
    """The median."""
    return statistics.median(spans)


def p99(spans: Sequence[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(spans, n=100)[98]


class Asked(NamedTuple):
    """A job to read, and one of its executions."""

    job: str
    execution: str


class Reader(HTTPConnection):
    """A plain client that keeps its connection and leaves answers as bytes: httpx takes 3 ms for each of its own."""

    def __init__(self, path: str, headers: dict[str, str]) -> None:
        super().__init__("localhost", timeout=120)
        self._path = path
        self._headers = headers

    def connect(self) -> None:
        """Connect to the Unix socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def read(self, path: str) -> None:
        """Read a resource, which must be there."""
        self.request("GET", path, headers=self._headers)
        answer = self.getresponse()
        body = answer.read()
        assert answer.status == HTTPStatus.OK, body


async def measure_endpoint(
    reader: Reader, connection: asyncpg.Connection, endpoint: Endpoint, asked: Sequence[Asked], requests: int
) -> tuple[list[float], list[float]]:
    """Milliseconds of the endpoint and of its floor, each time of another of the jobs."""
    chance = random.Random(endpoint.name)

    async def ask() -> None:
        reader.read(endpoint.path.format(**chance.choice(asked)._asdict()))

    async def select() -> None:
        await connection.fetch(endpoint.floor, chance.choice(asked).job)

    return await timed(requests, ask), await timed(requests, select)


async def executions_of(connection: asyncpg.Connection, jobs: Sequence[str]) -> list[Asked]:
    """The jobs, each with one of its executions."""
    statement = """
        SELECT job_id, execution_id FROM unnest($1::text[]) AS wanted (job_id), LATERAL (
            SELECT execution_id FROM results.executions WHERE job_id = wanted.job_id LIMIT 1) AS found
    """
    return [Asked(row["job_id"], str(row["execution_id"])) for row in await connection.fetch(statement, jobs)]


async def measure_all(reader: Reader, connection: asyncpg.Connection, jobs: int, requests: int) -> bool:
    """Measure every endpoint and print its figures; whether all are good."""
    good = True
    typical = await executions_of(connection, [f"job-{number}" for number in range(1, jobs + 1)])
    large = await executions_of(connection, [LARGE_JOB])
    for title, endpoints, asked in (
        ("lists", LISTS, typical),
        ("a job of 500 executions", OF_A_JOB, typical),
        ("the job of 100,000 executions", OF_A_JOB, large),
    ):
        print(f"{title:<30}{'p50 ms':>9}{'p99 ms':>9}{'SELECT p50':>13}{'p99':>9}")
        for endpoint in endpoints:
            spans, floor = await measure_endpoint(reader, connection, endpoint, asked, requests)
            good = good and p99(spans) < TARGET_MS
            print(
                f"  {endpoint.name:<28}{p50(spans):>9.1f}{p99(spans):>9.1f}{p50(floor):>13.2f}{p99(floor):>9.2f}"
                f"{'' if p99(spans) < TARGET_MS else f'   over {TARGET_MS:.0f} ms'}",
                flush=True,
            )
    return good


async def measure_export(client: httpx.AsyncClient, server: psutil.Process, file_format: str) -> tuple[int, float, int]:
    """Rows, seconds, and the most memory the server had while it exported the large job, in bytes."""
    most, done = 0, asyncio.Event()

    async def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, server.memory_info().rss)
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    began, lines = time.perf_counter(), 0
    params = {"format": file_format}
    async with client.stream("GET", f"/v1/jobs/{LARGE_JOB}/export", params=params) as response:
        response.raise_for_status()
        async for part in response.aiter_bytes():
            lines += part.count(b"\n")
    done.set()
    await watching
    return lines, time.perf_counter() - began, most


@asynccontextmanager
async def served(database_url: str, path: str) -> AsyncIterator[psutil.Process]:
    """The API in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.benchmarks.api_service", database_url, path
    )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        await process.wait()


async def until_ready(client: httpx.AsyncClient) -> None:
    """Wait for the API to answer."""
    async with asyncio.timeout(60):
        while True:
            try:
                (await client.get("/readyz")).raise_for_status()
            except httpx.HTTPError:
                await asyncio.sleep(0.1)
            else:
                return


async def filled(database_url: str, jobs: int) -> asyncpg.Connection:
    """A connection to the database, which is filled unless it is already."""
    engine = create_engine(database_url, application_name="bench-api")
    await migrate(engine, package="results", schema=SCHEMA)
    await engine.dispose()
    connection = await asyncpg.connect(database_url)
    began = time.perf_counter()
    if await connection.fetchval("SELECT NOT EXISTS (SELECT FROM results.jobs)"):
        await fill(connection, jobs)
    rows = await connection.fetchval("SELECT count(*) FROM results.executions")
    print(f"{rows:,} executions in {jobs + 1:,} jobs, ready after {time.perf_counter() - began:.0f} s\n", flush=True)
    return connection


async def a_key(database_url: str) -> str:
    """A key that reads."""
    engine = create_engine(database_url, application_name="bench-api")
    key = await keys.create(engine, keys.Scope.READ, now=SystemClock().now())
    await engine.dispose()
    return key


async def run(database_url: str, jobs: int, requests: int) -> bool:
    """Fill, measure and print; whether every target was met."""
    connection = await filled(database_url, jobs)
    authorization = {"Authorization": f"Bearer {await a_key(database_url)}"}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "api")
        transport = httpx.AsyncHTTPTransport(uds=path)
        async with (
            served(database_url, path) as server,
            httpx.AsyncClient(
                transport=transport, base_url="http://localhost", timeout=120, headers=authorization
            ) as client,
        ):
            await until_ready(client)
            fresh = server.memory_info().rss
            good = await measure_all(Reader(path, authorization), connection, jobs, requests)
            idle = server.memory_info().rss
            print(f"\nmemory: {fresh / 2**20:.0f} MB at first, {idle / 2**20:.0f} MB after all these requests")
            print(f"{'export of 100,000 rows':<30}{'rows/s':>9}{'most MB':>9}{'added':>13}")
            for file_format in ("jsonl", "csv"):
                lines, seconds, most = await measure_export(client, server, file_format)
                good = good and most / 2**20 < EXPORT_MB
                added = (most - idle) / 2**20
                print(f"  {file_format:<28}{lines / seconds:>9,.0f}{most / 2**20:>9.0f}{added:>13.0f}")
    await connection.close()
    return good


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--data", type=Path, help="keep the filled database in this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, postgres_server(arguments.data or Path(folder) / "data") as url:
        asyncio.run(make_fast(url))
        return 0 if asyncio.run(run(url, arguments.jobs, arguments.requests)) else 1


if __name__ == "__main__":
    sys.exit(main())
