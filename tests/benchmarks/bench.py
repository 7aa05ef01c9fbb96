"""``make bench``: Parallax beside a raw floor and Celery, in one run on one machine.

Each contender gets the same servers (a private RabbitMQ node and a durable PostgreSQL), a database of its own, the
same number of jobs, questions and executions, messages of the same size, and a model that answers at once. Every
contender stamps the start and the end of each execution itself; the rows it committed are read back, and all
figures come from them: throughput from the first submission to the last committed row, gaps from the last
completion of a question to the first start of the next one of that job.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psutil
import pytest
from rich.console import Console

from parallax.db.embedded import embedded_postgres
from tests.benchmarks.compare import report
from tests.benchmarks.compare.celery_stack import NotAvailableError, celery_stack
from tests.benchmarks.compare.celery_stack import prepare as prepare_celery
from tests.benchmarks.compare.figures import BATCH_SIZE, Figures, Load, figures, growth_per_1000, median_run
from tests.benchmarks.compare.floor_stack import floor_stack
from tests.benchmarks.compare.jobs import message_sizes
from tests.benchmarks.compare.ledger import StalledError
from tests.benchmarks.compare.parallax_stack import Variant, parallax_stack
from tests.benchmarks.compare.service import ContenderFailedError, Service, watched
from tests.benchmarks.compare.stack import Site, Stack
from tests.harness.postgres import create_database
from tests.harness.rabbitmq import rabbitmq_node

RUN_TIMEOUT_S: Final = 300.0
SOAK_TIMEOUT_S: Final = 3 * 3600.0
SOAK_JOBS: Final = 50
SOAK_SAMPLE_EVERY_S: Final = 1.0
CALL_S: Final = 0.2
EXIT_UNREACHABLE: Final = 4
EXIT_INTERRUPTED: Final = 130
REPORT_WIDTH: Final = 110
"""Of a report that goes into a file."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A contender as it can be asked for."""

    name: str
    label: str
    start: Callable[[Site], AbstractAsyncContextManager[Stack]]
    barrier: bool = True
    """Whether a question waits for the one before; where not, there is no gap to measure."""
    prepare: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run."""

    load: Load
    idle: Load
    warm_up: Load
    rounds: int
    executors_per_region: tuple[int, ...]


FULL: Final = Size(
    load=Load(jobs=50, questions=8),
    idle=Load(jobs=1, questions=100),
    warm_up=Load(jobs=10, questions=4),
    rounds=3,
    executors_per_region=(1, 2, 4),
)
QUICK: Final = Size(
    load=Load(jobs=10, questions=4),
    idle=Load(jobs=1, questions=10),
    warm_up=Load(jobs=2, questions=2),
    rounds=1,
    executors_per_region=(1, 2),
)


@dataclass(frozen=True, slots=True)
class Servers:
    """What all contenders share."""

    amqp_url: str
    postgres_url: str
    folder: Path
    services: tuple[Service, ...]
    """Broker and database, where they are ours to look at."""

    async def site(self, name: str) -> Site:
        """A folder and a database for one contender."""
        folder = self.folder / name
        folder.mkdir()
        url = await create_database(self.postgres_url, f"bench_{name}".replace("-", "_"))
        task_bytes, fact_bytes = message_sizes()
        return Site(self.amqp_url, url, folder, task_bytes, fact_bytes)


@asynccontextmanager
async def servers(folder: Path) -> AsyncIterator[Servers]:
    """A private RabbitMQ node and a private PostgreSQL with its durable default settings."""
    with ExitStack() as running:
        node = running.enter_context(rabbitmq_node(folder / "rabbitmq"))
        data = folder / "postgres"
        url = running.enter_context(embedded_postgres(data))
        found = [Service("PostgreSQL", int((data / "postmaster.pid").read_text().split()[0]))]
        found += [
            Service("RabbitMQ", child.pid)
            for child in psutil.Process().children(recursive=True)
            if child.name().startswith("beam")
        ]
        yield Servers(node.url, url, folder, tuple(found))


async def run_load(stack: Stack, prefix: str, load: Load, *, timeout_s: float = RUN_TIMEOUT_S) -> Figures:
    """Submit a load, wait until it is recorded, and read it back."""
    submitted_at = time.time()
    await stack.submit(prefix, load)
    await stack.ledger.wait(prefix, load.executions, timeout_s=timeout_s, seen=lambda _count: stack.check())
    return figures(await stack.ledger.rows(prefix), submitted_at)


async def measure(entry: Entry, site: Site, shared: tuple[Service, ...], size: Size) -> report.Contender:
    """Everything about one contender."""
    async with entry.start(site) as stack:
        await run_load(stack, "warm-up", size.warm_up)
        services = (*stack.services, *shared)
        for service in services:
            service.peak_mb = 0.0
        before = {service.name: service.cpu_s() for service in services}
        async with watched(services):
            runs = [await run_load(stack, f"load{index}", size.load) for index in range(size.rounds)]
        thousands = size.rounds * size.load.executions / 1000
        costs = tuple(
            report.ServiceCost(service.name, (service.cpu_s() - before[service.name]) / thousands, service.peak_mb)
            for service in services
        )
        median = median_run(runs)
        if not entry.barrier:
            return report.Contender(entry.label, replace(median, gap_p50_ms=None, gap_p99_ms=None), None, costs)
        return report.Contender(entry.label, median, await run_load(stack, "idle", size.idle), costs)


async def measure_spread(shared: Servers, size: Size) -> list[report.Spread]:
    """Throughput with 200 ms calls, by executors per region."""
    found = []
    for count in size.executors_per_region:
        site = await shared.site(f"spread_{count}")
        async with parallax_stack(site, Variant(executors_per_region=count, latency_s=CALL_S)) as stack:
            await run_load(stack, "warm-up", size.warm_up)
            found.append(report.Spread(count, await run_load(stack, "spread", size.load)))
    return found


async def soak(shared: Servers, executions: int) -> list[report.Memory]:
    """The memory of every service while many executions pass through one installation."""
    load = Load(SOAK_JOBS, max(1, -(-executions // (SOAK_JOBS * BATCH_SIZE))))
    async with parallax_stack(await shared.site("soak"), Variant()) as stack:
        services = (*stack.services, *shared.services)

        def note(count: int) -> None:
            stack.check()
            for service in services:
                service.history.append((count, service.memory_mb()))

        await stack.submit("soak", load)
        await stack.ledger.wait(
            "soak", load.executions, timeout_s=SOAK_TIMEOUT_S, every_s=SOAK_SAMPLE_EVERY_S, seen=note
        )
    return [
        report.Memory(service.name, tuple(service.history), growth_per_1000(service.history)) for service in services
    ]


async def bench(arguments: argparse.Namespace, console: Console) -> report.Report:
    """Run what was asked for."""
    size = QUICK if arguments.quick else FULL
    found = report.Report(machine=machine(), load=describe(size))
    with tempfile.TemporaryDirectory(prefix="parallax-bench-", ignore_cleanup_errors=True) as folder:
        async with servers(Path(folder)) as shared:
            if arguments.soak:
                found.load = f"soak of {arguments.soak:,} executions"
                found.soak = await soak(shared, arguments.soak)
                return found
            for entry in CONTENDERS:
                if arguments.only and entry.name not in arguments.only:
                    continue
                console.print(f"measuring {entry.label} …", highlight=False)
                found.contenders.append(await measure_or_skip(entry, shared, size))
            if not arguments.only or "spread" in arguments.only:
                console.print("measuring how work spreads over executors …", highlight=False)
                found.spread = await measure_spread(shared, size)
    return found


async def measure_or_skip(entry: Entry, shared: Servers, size: Size) -> report.Contender:
    """One contender, or why it could not take part."""
    try:
        entry.prepare()
        return await measure(entry, await shared.site(entry.name), shared.services, size)
    except NotAvailableError as error:
        return report.Contender(entry.label, skipped=str(error))


CONTENDERS: Final = (
    Entry("pipe", "raw floor, no barrier", lambda site: floor_stack(site, barrier=False), barrier=False),
    Entry("floor", report.FLOOR, lambda site: floor_stack(site, barrier=True)),
    Entry("celery", report.CELERY, lambda site: celery_stack(site, synced=True), prepare=prepare_celery),
    Entry(
        "celery-lax",
        "Celery, Redis synced once a second",
        lambda site: celery_stack(site, synced=False),
        prepare=prepare_celery,
    ),
    Entry("parallax", report.PARALLAX, lambda site: parallax_stack(site, Variant())),
    Entry("http", "Parallax, model over HTTP", lambda site: parallax_stack(site, Variant(http_model=True))),
)


def describe(size: Size) -> str:
    """The load in words."""
    load, idle = size.load, size.idle
    return (
        f"load: {load.jobs} jobs x {load.questions} questions x {BATCH_SIZE} executions at once, median of"
        f" {size.rounds}; idle: one job of {idle.questions} questions"
    )


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    return {
        "machine": f"{os.cpu_count()} CPUs, {psutil.virtual_memory().total / 2**30:.0f} GB",
        "system": platform.platform(),
        "Python": platform.python_version(),
        "load average at start": f"{os.getloadavg()[0]:.1f}",
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = [*(entry.name for entry in CONTENDERS), "spread"]
    parser.add_argument("--quick", action="store_true", help="a small run, to see that everything works")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"only these of {', '.join(names)}")
    parser.add_argument("--soak", type=int, metavar="N", help="instead: memory over at least N executions of Parallax")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    arguments = parser.parse_args()
    progress = Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves no process behind, as after Ctrl-C
    try:
        found = asyncio.run(bench(arguments, progress))
    except pytest.skip.Exception as error:
        progress.print(f"bench: {error}", highlight=False)
        return EXIT_UNREACHABLE
    except (ContenderFailedError, StalledError) as error:
        progress.print(f"bench: {error}", highlight=False, markup=False)
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if arguments.json:
        sys.stdout.write(json.dumps(found.document(), indent=2) + "\n")
    else:
        report.show(found, Console(width=None if sys.stdout.isatty() else REPORT_WIDTH))
    return 0


if __name__ == "__main__":
    sys.exit(main())
