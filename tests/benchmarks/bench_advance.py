"""What it costs to advance a batch, from the first question of a long job to its last:
``python -m tests.benchmarks.bench_advance [QUESTIONS]``.

The dispatcher's own handler moves the job on a private PostgreSQL with its durable defaults; messages go to a bus
that only counts them, so the figures are the dispatcher's alone.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Final, NamedTuple

import psutil

from parallax.bus.memory import MemoryBroker, MemoryBus
from parallax.clock import SystemClock
from parallax.contracts.messages import BatchCompleted, Message
from parallax.contracts.outcomes import Counts
from parallax.contracts.plan import BatchRef
from parallax.db.embedded import embedded_postgres
from parallax.db.engine import create_engine
from parallax.db.migrations import migrate
from tests.integration.dispatcher_stage import CATALOG, bare_handlers, job_document, submit_by_hand

QUESTIONS: Final = 10_000
WINDOW: Final = 500
"""Batches at each end over which the figures are taken."""
EXECUTIONS: Final = 6


class Cost(NamedTuple):
    """What one batch took."""

    wall_s: float
    cpu_s: float
    """Of the dispatcher's process."""


class CountingBus(MemoryBus):
    """Counts what is published instead of keeping it."""

    published = 0

    async def publish(self, *messages: Message) -> None:
        """Count."""
        self.published += len(messages)


async def advance(url: str, questions: int) -> None:
    """Run one job through its batches and print what each window of them cost."""
    engine, clock = create_engine(url, application_name="bench", pool_size=2), SystemClock()
    await migrate(engine, package="dispatcher", schema="dispatcher")
    bus = CountingBus(MemoryBroker(CATALOG.regions))
    handlers = bare_handlers(bus, engine, clock)
    await submit_by_hand(bus, handlers, "long", job_document(questions, samples=EXECUTIONS // 2))
    process = psutil.Process()
    costs, memory_bytes = [], [process.memory_info().rss]
    for index in range(questions):
        ref = BatchRef(job_id="long", lane="all", question_index=index)
        began, began_cpu = time.perf_counter(), time.process_time()
        await handlers.batch_completed(BatchCompleted(batch=ref, counts=Counts(completed=EXECUTIONS)))
        costs.append(Cost(time.perf_counter() - began, time.process_time() - began_cpu))
        if (index + 1) % (questions // 10) == 0:
            memory_bytes.append(process.memory_info().rss)
    await engine.dispose()
    assert bus.published == questions * (EXECUTIONS + 1) + 3, "every batch was opened, and the job finished"
    show(costs, memory_bytes)


def show(costs: list[Cost], memory_bytes: list[int]) -> None:
    """Print both ends beside each other."""
    ends = {"first": costs[1 : WINDOW + 1], "last": costs[-WINDOW - 1 : -1]}
    print(f"{len(costs)} questions x {EXECUTIONS} executions, cost of advancing one batch")
    for name, window in ends.items():
        wall, cpu = [cost.wall_s * 1e3 for cost in window], [cost.cpu_s * 1e3 for cost in window]
        p99 = quantiles(wall, n=100)[98]
        print(f"  {name} {len(window)}: median {median(wall):.2f} ms, p99 {p99:.2f} ms; CPU {median(cpu):.2f} ms")
    wall_ratio, cpu_ratio = (
        median(cost[part] for cost in ends["last"]) / median(cost[part] for cost in ends["first"]) for part in (0, 1)
    )
    print(f"  last / first: {wall_ratio:.2f} by the wall clock (mind other load), {cpu_ratio:.2f} by CPU time")
    mib = [size / 2**20 for size in memory_bytes]
    print(f"  memory: {mib[0]:.1f} MiB after the submission, {mib[-1]:.1f} MiB at the end, {max(mib):.1f} at most")


def main() -> None:
    """Run the benchmark."""
    questions = int(sys.argv[1]) if len(sys.argv) > 1 else QUESTIONS
    with tempfile.TemporaryDirectory() as folder, embedded_postgres(Path(folder) / "data") as url:
        asyncio.run(advance(url, questions))


if __name__ == "__main__":
    main()
