"""Runs the raw floor as five processes, with or without a barrier between questions."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import aio_pika

from tests.benchmarks.compare import floor
from tests.benchmarks.compare.figures import REGIONS, Load
from tests.benchmarks.compare.ledger import ledger
from tests.benchmarks.compare.service import started
from tests.benchmarks.compare.stack import Site, Stack, channel, delete_queues, job_names, wait_for_consumers


@asynccontextmanager
async def floor_stack(site: Site, *, barrier: bool) -> AsyncIterator[Stack]:
    """The floor, running. Without ``barrier`` every question of a job is sent at once: the pipe's own rate."""
    environment = {
        "BENCH_AMQP_URL": site.amqp_url,
        "BENCH_DATABASE_URL": site.database_url,
        "BENCH_TASK_BYTES": str(site.task_bytes),
        "BENCH_FACT_BYTES": str(site.fact_bytes),
    }
    async with channel(site.amqp_url) as submitting, ledger(site.database_url, "executions") as rows:
        await rows.create()

        async def submit(prefix: str, load: Load) -> None:
            last = load.questions - 1
            names = job_names(prefix, load)
            starts = (
                [floor.Done(job, -1, last) for job in names]
                if barrier
                else [floor.Done(job, index - 1, -1) for job in names for index in range(load.questions)]
            )
            messages = [
                aio_pika.Message(b"", message_id=done.encode(), delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
                for done in starts
            ]
            await asyncio.gather(*(submitting.default_exchange.publish(each, floor.DONE) for each in messages))

        with ExitStack() as processes:
            command = [sys.executable, "-m", floor.__name__]
            services = [
                processes.enter_context(
                    started(
                        name, [*command, role], folder=site.folder, environment={**environment, "BENCH_REGION": region}
                    )
                )
                for name, role, region in (
                    ("publisher", "publisher", ""),
                    *((f"executor {region}", "executor", region) for region in REGIONS),
                    ("recorder", "recorder", ""),
                )
            ]
            await wait_for_consumers(site.amqp_url, floor.QUEUES, services)
            yield Stack(tuple(services), rows, submit)
    await delete_queues(site.amqp_url, floor.QUEUES)
