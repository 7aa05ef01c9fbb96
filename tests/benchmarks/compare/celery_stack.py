"""Runs the Celery contender: its own environment and Redis server, a worker per region and one that records."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

import aio_pika

from tests.benchmarks.compare.figures import REGIONS, Load
from tests.benchmarks.compare.ledger import ledger
from tests.benchmarks.compare.service import ContenderFailedError, Service, started
from tests.benchmarks.compare.stack import (
    REPOSITORY,
    Site,
    Stack,
    channel,
    delete_queues,
    job_names,
    wait_for_consumers,
)

ENVIRONMENT: Final = REPOSITORY / ".cache/bench-venv"
LOCK: Final = REPOSITORY / "tests/benchmarks/requirements.lock"
START_TIMEOUT_S: Final = 180.0
RECORD_QUEUE: Final = "bench-celery.record"
QUEUES: Final = (RECORD_QUEUE, *(f"bench-celery.tasks.{region}" for region in REGIONS))
EXECUTE_OPTIONS: Final = ("--pool", "prefork", "--concurrency", "2")
RECORD_OPTIONS: Final = ("--pool", "prefork", "--concurrency", "2")
"""Celery's default pool; two processes each, because calls that take no time gain nothing from more."""


class NotAvailableError(Exception):
    """Celery cannot take part; the message says why."""


def prepare() -> None:
    """Install Celery into an environment of its own, and see that there is a Redis server.

    Raises:
        NotAvailableError: One of them is missing and cannot be installed.
    """
    if shutil.which("redis-server") is None and not _apt_install("redis-server"):
        raise NotAvailableError(
            "redis-server is missing and cannot be installed (Debian: apt-get install redis-server)"
        )
    stamp = ENVIRONMENT / ".lock"
    if stamp.exists() and stamp.read_bytes() == LOCK.read_bytes():
        return
    uv = shutil.which("uv") or str(REPOSITORY / ".cache/tools/bin/uv")
    try:
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, ENVIRONMENT], check=True)
        subprocess.run(
            [uv, "pip", "sync", "--quiet", "--python", ENVIRONMENT, "--require-hashes", LOCK],
            check=True,
            cwd=REPOSITORY,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotAvailableError(f"Celery cannot be installed with uv: {error}") from error
    stamp.write_bytes(LOCK.read_bytes())


def _apt_install(package: str) -> bool:
    if shutil.which("apt-get") is None:
        return False
    command = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", package]
    subprocess.run(["apt-get", "update", "-qq"], check=False, capture_output=True)
    return subprocess.run(command, check=False, capture_output=True).returncode == 0 and bool(shutil.which(package))


@contextmanager
def redis_server(folder: Path, *, synced: bool) -> Iterator[tuple[Service, str]]:
    """A private Redis server with an append-only file.

    ``synced`` writes through to the disk before it answers, as broker and database do: a task is acknowledged once
    its result is stored, so a result that only memory holds could be lost for good. Otherwise it syncs once a second.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [
        "redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder),
        "--appendonly", "yes", "--appendfsync", "always" if synced else "everysec", "--save", "",
    ]  # fmt: skip
    with started("redis", command, folder=folder, environment={}) as service:
        _wait_until_listening(service, port)
        yield service, f"redis://127.0.0.1:{port}/0"


def _wait_until_listening(service: Service, port: int) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        service.check()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise ContenderFailedError(f"{service.name} does not listen on port {port}:\n{service.tail()}")


@asynccontextmanager
async def celery_stack(site: Site, *, synced: bool) -> AsyncIterator[Stack]:
    """Celery, running; ``synced`` is about its Redis server. :func:`prepare` comes first."""
    async with channel(site.amqp_url) as submitting, ledger(site.database_url, "executions") as rows:
        await rows.create()

        async def submit(prefix: str, load: Load) -> None:
            for job in job_names(prefix, load):
                await submitting.default_exchange.publish(_start_message(job, load.questions), RECORD_QUEUE)

        with ExitStack() as processes:
            redis, redis_url = processes.enter_context(redis_server(site.folder, synced=synced))
            environment = {
                "BENCH_AMQP_URL": site.amqp_url,
                "BENCH_DATABASE_URL": site.database_url,
                "BENCH_REDIS_URL": redis_url,
                "BENCH_TASK_BYTES": str(site.task_bytes),
                "BENCH_FACT_BYTES": str(site.fact_bytes),
                "PYTHONPATH": str(REPOSITORY),
            }
            workers = [
                processes.enter_context(
                    started(name, _worker(queue, options), folder=site.folder, environment=environment)
                )
                for name, queue, options in (
                    *((f"worker {region}", f"bench-celery.tasks.{region}", EXECUTE_OPTIONS) for region in REGIONS),
                    ("worker record", RECORD_QUEUE, RECORD_OPTIONS),
                )
            ]
            await wait_for_consumers(site.amqp_url, QUEUES, workers)
            yield Stack((*workers, redis), rows, submit)
    await delete_queues(site.amqp_url, QUEUES)


def _worker(queue: str, options: tuple[str, ...]) -> list[str]:
    return [
        str(ENVIRONMENT / "bin/python"), "-m", "celery", "--app", "tests.benchmarks.compare.celery_app", "worker",
        "--queues", queue, "--hostname", f"{queue}@localhost", *options, "--loglevel", "WARNING",
        "--without-gossip", "--without-mingle", "--without-heartbeat",
    ]  # fmt: skip


def _start_message(job: str, questions: int) -> aio_pika.Message:
    """The task ``bench.start`` as Celery's message protocol 2 writes it."""
    identifier = str(uuid4())
    body = [[job, questions], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    return aio_pika.Message(
        json.dumps(body).encode(),
        content_type="application/json",
        content_encoding="utf-8",
        correlation_id=identifier,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        headers={"lang": "py", "task": "bench.start", "id": identifier, "root_id": identifier},
    )
