"""The API over a real database and the memory bus, with rows written by the service's own ledger and projection."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import httpx
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.bus.memory import MemoryBroker, MemoryBus
from parallax.catalog import Catalog, offer_of, parse_catalog
from parallax.clock import SystemClock
from parallax.contracts.intake import check_job
from parallax.contracts.job import JobSpec
from parallax.contracts.messages import (
    BatchOpened,
    ExecutionFinished,
    JobAccepted,
    JobFinished,
    JobStarted,
    Message,
    decode,
)
from parallax.contracts.outcomes import Counts, JobOutcome, Reason
from parallax.contracts.plan import ALL_REGIONS_LANE, BatchPlan, BatchRef, JobPlan, batch_count, execution_count
from parallax.contracts.routing import Queue
from parallax.db.engine import create_engine
from parallax.db.migrations import migrate
from results import ledger, projection
from results.api.app import create_api
from results.api.settings import ApiSettings
from results.facts import read_news
from results.tables import SCHEMA
from tests.fakes import facts

CATALOG: Catalog = parse_catalog(
    {
        "regions": {
            "us": {"name": "the United States", "endpoint": "modal://parallax-us/Inference"},
            "eu": {"name": "the European Union", "endpoint": "modal://parallax-eu/Inference", "price_multiplier": 2.0},
            "apac": {"name": "Asia-Pacific", "endpoint": "modal://parallax-apac/Inference", "simulated": True},
        },
        "models": {
            "smollm2-135m": {
                "upstream": "HuggingFaceTB/SmolLM2-135M-Instruct",
                "regions": ["us", "eu", "apac"],
                "modal": {"gpu": "L4", "max_inputs": 10},
            }
        },
        "prices": {"as_of": "2026-11-01", "currency": "USD", "gpu_second": {"L4": 0.001}},
    },
    source="test",
)


def job_document(questions: int = 3, **changes: Any) -> dict[str, Any]:
    """A small valid job: two models in three regions."""
    return {
        "name": "survey",
        "questions": [{"id": f"question-{index}", "text": f"Question {index}?"} for index in range(questions)],
        "models": [{"id": f"model-{number}", "model": "smollm2-135m"} for number in range(2)],
        "regions": ["us", "eu", "apac"],
        **changes,
    }


@dataclass(frozen=True)
class Stage:
    """A running API and the means to give it something to tell."""

    app: FastAPI
    engine: AsyncEngine
    broker: MemoryBroker
    bus: MemoryBus
    http: httpx.AsyncClient

    async def accept(
        self, job_id: str, document: dict[str, Any] | None = None, *, at: datetime = facts.START
    ) -> JobSpec:
        """Let a job be accepted and started, as the dispatcher would announce it."""
        spec, problems = check_job(document or job_document(), offer_of(CATALOG))
        assert spec is not None, problems
        accepted = JobAccepted(
            job_id=job_id,
            name=spec.name,
            job=spec.model_dump(mode="json", exclude={"questions", "only"}),
            plan=JobPlan.of(spec),
            questions=len(spec.questions),
            batches=batch_count(spec),
            executions=execution_count(spec),
            accepted_at=at,
            retry_of=spec.retry_of,
        )
        await self.tell(accepted, JobStarted(job_id=job_id, started_at=at), at=at)
        return spec

    async def open(self, job_id: str, spec: JobSpec, index: int, *, told: bool = True) -> BatchPlan:
        """Let a batch be opened; what was ``told`` of it names its whole question."""
        cells = tuple(JobPlan.of(spec).cells(ALL_REGIONS_LANE))
        ref = BatchRef(job_id=job_id, lane=ALL_REGIONS_LANE, question_index=index)
        question = spec.questions[index]
        opened = BatchOpened(
            batch=ref,
            question_id=question.id,
            question=question if told else None,
            executions=len(cells),
            opened_at=facts.START,
            deadline_at=facts.START + timedelta(hours=1),
        )
        await ledger.record(self.engine, [read_news(opened.model_dump_json().encode())], facts.START)
        return BatchPlan(ref=ref, question_id=question.id, cells=cells)

    async def finish(self, job_id: str, outcome: JobOutcome = JobOutcome.COMPLETED) -> None:
        """Let a job end."""
        reason = Reason(code="all_batches_completed", message="every batch is complete")
        counts = Counts(completed=1)
        finished_at = facts.START + timedelta(minutes=5)
        await self.tell(
            JobFinished(
                job_id=job_id, outcome=outcome, reason=reason, counts=counts, not_started=0, finished_at=finished_at
            )
        )

    async def tell(self, *events: projection.JobEvent, at: datetime = facts.START) -> None:
        """Project events."""
        for event in events:
            await projection.project(self.engine, event, at)

    async def store(self, some: Iterable[ExecutionFinished]) -> None:
        """Record facts."""
        await ledger.record(self.engine, [read_news(fact.model_dump_json().encode()) for fact in some], facts.START)

    async def complete_job(self, job_id: str, questions: int = 3, *, text: str = "an answer") -> JobSpec:
        """A whole job of which every execution is completed."""
        spec = await self.accept(job_id, job_document(questions))
        for index in range(questions):
            await self.store(facts.every(await self.open(job_id, spec, index), text=text))
        await self.finish(job_id)
        return spec

    async def published(self, queue: Queue) -> list[Message]:
        """Take every message that waits in a queue."""
        bodies: list[bytes] = []
        waiting = await self.bus.depth(queue)
        consumption = await self.bus.consume(queue, prefetch=100, handler=lambda delivery: bodies.append(delivery.body))
        self.broker.deliver_all()
        await consumption.stop()
        assert len(bodies) == waiting
        return [decode(body) for body in bodies]


@asynccontextmanager
async def staged(database_url: str, settings: ApiSettings | None = None) -> AsyncIterator[Stage]:
    """An API on an empty database."""
    engine = create_engine(database_url, application_name="test")
    broker = MemoryBroker(CATALOG.regions)
    bus = MemoryBus(broker)
    await migrate(engine, package="results", schema=SCHEMA)
    app = create_api(
        engine=engine,
        bus=bus,
        catalog=CATALOG,
        clock=SystemClock(),
        settings=settings or ApiSettings(stream_poll_s=0.02),
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield Stage(app=app, engine=engine, broker=broker, bus=bus, http=client)
    await bus.close()
    await engine.dispose()
