"""How many facts a second the ledger takes: ``python -m tests.benchmarks.bench_ledger``.

On one private PostgreSQL with its durable defaults: the transaction alone, by size of flush and number of
writers, and then the recorder as it runs, fed through the memory bus.
"""

import asyncio
import logging
import tempfile
import time
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.bus.memory import MemoryBroker, MemoryBus
from parallax.clock import SystemClock
from parallax.contracts.messages import encode
from parallax.contracts.routing import FACTS, PROGRESS
from parallax.db.embedded import embedded_postgres
from parallax.db.engine import create_engine
from parallax.db.migrations import migrate
from results import ledger
from results.facts import Fact, Opening, read_news
from results.recorder import Recorder
from tests.fakes.facts import every, plan
from tests.harness.results import Inbox

FACTS_PER_RUN: Final = 18_000
BATCH: Final = 18
ANSWER: Final = "The printing press, because it made knowledge cheap to copy. " * 5
CLOCK: Final = SystemClock()


def bodies(job_id: str, count: int) -> list[bytes]:
    """Facts of a job with batches of 18, as messages."""
    plans = (plan(job_id, index, models=BATCH // 3) for index in range(count // BATCH))
    return [encode(fact) for each in plans for fact in every(each, text=ANSWER)]


async def write_alone(engine: AsyncEngine, name: str, group: int, writers: int) -> float:
    """Facts a second through ``ledger.record`` with ``writers`` at once, each with facts of a job of its own."""
    count = FACTS_PER_RUN if group > 1 else 2_000
    shares = [[read_news(body) for body in bodies(f"{name}-{each}", count // writers)] for each in range(writers)]

    async def writer(facts: list[Fact | Opening]) -> None:
        for start in range(0, len(facts), group):
            await ledger.record(engine, facts[start : start + group], CLOCK.now())

    began = time.perf_counter()
    await asyncio.gather(*map(writer, shares))
    return sum(map(len, shares)) / (time.perf_counter() - began)


async def through_bus(engine: AsyncEngine) -> float:
    """Facts a second from the queue to the acknowledgement, parsing included."""
    broker = MemoryBroker(("us", "eu", "apac"))
    bus = MemoryBus(broker)
    for body in bodies("bus", FACTS_PER_RUN):
        await bus.publish_raw(FACTS, body)
    signals = await Inbox.of(broker, PROGRESS)
    recorder = Recorder(bus=bus, engine=engine, clock=CLOCK)
    began = time.perf_counter()
    await recorder.start()
    for _ in range(FACTS_PER_RUN // BATCH):
        await signals.next()
    took_s = time.perf_counter() - began
    await recorder.close()
    return FACTS_PER_RUN / took_s


async def measure(url: str) -> None:
    """Print every figure."""
    engine = create_engine(url, application_name="bench")
    await migrate(engine, package="results", schema="results")
    print(f"fact: {len(bodies('x', BATCH)[0])} bytes; batches of {BATCH}; {FACTS_PER_RUN} facts a run")
    for group, writers in ((1, 1), (18, 1), (100, 1), (300, 1), (100, 2), (300, 2)):
        rate = await write_alone(engine, f"g{group}w{writers}", group, writers)
        print(f"ledger alone, {group:3} facts a flush, {writers} writer(s): {rate:8,.0f} facts/s")
    print(f"recorder on the memory bus:                  {await through_bus(engine):8,.0f} facts/s")
    async with engine.connect() as connection:
        stored = (await connection.execute(text("SELECT count(*) FROM results.executions"))).scalar_one()
        counted = (await connection.execute(text("SELECT sum(recorded) FROM results.batches"))).scalar_one()
    assert stored == counted
    await engine.dispose()


def main() -> None:
    """Measure on a server of its own."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory() as folder, embedded_postgres(Path(folder) / "data") as url:
        asyncio.run(measure(url))


if __name__ == "__main__":
    main()
