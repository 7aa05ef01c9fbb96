"""What submissions cost: ``python -m tests.benchmarks.bench_submission [KIND ...]``.

Each job of 15 MB goes to a dispatcher and, in an installation of its own, to the API, on a private PostgreSQL and the
memory bus, while nothing else runs. Printed are the seconds until the answer, the longest time the event loop stood
still, the most processor time the process used between two ticks of 5 ms, and the memory: of the worker at its peak,
and of the process above where it began. The last lines are small submissions, which are checked in place.
"""

import asyncio
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Final

import structlog

from dispatcher.submission import read_submission
from parallax.catalog import offer_of
from parallax.contracts.routing import SUBMISSIONS
from parallax.db.embedded import embedded_postgres
from parallax.db.engine import create_engine
from tests.fakes.large_jobs import KINDS, LargeJob, large_job
from tests.harness.postgres import create_database
from tests.harness.stalls import Strain, measured
from tests.integration import api_stage
from tests.integration.dispatcher_stage import CATALOG, dispatching, job_document, staged

MIB: Final = 2**20
ROUNDS: Final = 200
SMALL: Final = (1, 10, 100, 1_000)
"""Questions of small jobs."""
HEADERS: Final = {"Content-Type": "application/json"}
SETTLE_S: Final = 0.3
"""Before and after each job: what the last one left behind is not to count."""


async def to_dispatcher(server: str, kind: str, job: LargeJob) -> None:
    """Submit a job as a message."""
    engine = create_engine(await create_database(server, f"d{KINDS.index(kind)}"), application_name="bench")
    body = b'{"job_id":"large","job":' + job.body + b"}"
    async with staged(engine) as stage, dispatching(stage):
        await asyncio.sleep(SETTLE_S)
        async with measured() as strain:
            replies = stage.bus.replies("bench")
            began = time.perf_counter()
            await stage.bus.publish_raw(SUBMISSIONS, body, reply_to="bench")
            await replies.get()
            seconds = time.perf_counter() - began
            await asyncio.sleep(SETTLE_S)
    await engine.dispose()
    show("dispatcher", kind, body, seconds, strain)


async def to_api(server: str, kind: str, job: LargeJob) -> None:
    """Submit a job over HTTP."""
    body = job.body.replace(b'"tiny"', b'"smollm2-135m"')
    async with api_stage.staged(await create_database(server, f"a{KINDS.index(kind)}")) as stage:
        await stage.http.get("/v1/jobs")
        await asyncio.sleep(SETTLE_S)
        async with measured() as strain:
            began = time.perf_counter()
            await stage.http.post("/v1/jobs", content=body, headers=HEADERS)
            seconds = time.perf_counter() - began
            await asyncio.sleep(SETTLE_S)
    show("api", kind, body, seconds, strain)


def show(where: str, kind: str, body: bytes, seconds: float, strain: Strain) -> None:
    """Print one line."""
    print(
        f"{where:11}{kind:30}{len(body) / 1e6:6.1f} MB {seconds:7.2f} s   stall {strain.stall_s * 1e3:5.0f} ms"
        f"  busy {strain.busy_s * 1e3:4.0f} ms   worker {strain.worker_bytes / MIB:4.0f} MiB"
        f"  process {strain.grown_bytes / MIB:+4.0f} MiB",
        flush=True,
    )


def small() -> None:
    """Print what it takes to check small jobs in place."""
    offer = offer_of(CATALOG)
    for questions in SMALL:
        body = json.dumps({"job_id": "small", "job": job_document(questions)}).encode()
        taken = []
        for _ in range(ROUNDS):
            began = time.process_time()
            read_submission(body, offer)
            taken.append(time.process_time() - began)
        print(f"{questions:6} questions, {len(body) / 1e3:6.1f} kB: {median(taken) * 1e3:6.2f} ms")


async def large(server: str, kinds: list[str]) -> None:
    """Run every kind."""
    for kind in kinds:
        job = large_job(kind)
        await to_dispatcher(server, kind, job)
        await to_api(server, kind, job)


def main() -> None:
    """Run the benchmark."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory() as folder, embedded_postgres(Path(folder) / "data") as url:
        asyncio.run(large(url, sys.argv[1:] or list(KINDS)))
    small()


if __name__ == "__main__":
    main()
