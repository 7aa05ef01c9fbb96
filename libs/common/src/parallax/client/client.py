"""A typed client of the API: submit jobs, follow them, read what came of them.

async with ParallaxClient("http://127.0.0.1:8080") as client:
    job = await client.submit(spec)
    async for event in client.events(job.id):
        print(event.kind)
    frame = (await client.results(job.id)).to_pandas()
"""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote
from uuid import UUID

import httpx

from parallax.client.events import JobEvent, follow_events
from parallax.client.results import Results
from parallax.client.transport import Transport
from parallax.contracts.answers import (
    Execution,
    ExecutionBrief,
    ExecutionPage,
    Job,
    JobBrief,
    JobPage,
    Matrix,
    MatrixRow,
    Retried,
    Submitted,
    Summary,
)
from parallax.contracts.comparison import Across, Comparison, ComparisonProgress, Judgement, Judgements
from parallax.contracts.installation import CatalogAnswer, Regions
from parallax.contracts.job import JobSpec
from parallax.contracts.outcomes import ExecutionStatus
from parallax.contracts.rates import Outcome

PAGE_SIZE: Final = 200


class ParallaxClient:
    """One installation, reached over HTTP. Use it as ``async with``.

    Every method raises ``UnavailableError`` when the API cannot be reached, ``NotFoundError`` for an unknown job,
    ``AccessDeniedError`` when a key is missing or not enough, and ``InvalidInputError`` for anything else that the
    API refuses.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        socket: Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Reach the API at ``url`` with an optional key; ``socket`` goes through a Unix socket instead of TCP."""
        self._transport = Transport(url, key=key, socket=socket, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._transport.close()

    # --- jobs

    async def submit(self, spec: JobSpec, *, job_id: str | None = None) -> Submitted:
        """Ask for a job. With a ``job_id`` the same submission can be repeated safely.

        Raises:
            InvalidJobError: The job breaks rules; every one is listed.
            ConflictError: The id belongs to a job with other content.
        """
        headers = {"Idempotency-Key": job_id} if job_id else None
        return await self._transport.post(Submitted, "/v1/jobs", spec.model_dump_json().encode(), headers=headers)

    async def job(self, job_id: str) -> Job:
        """All about a job but its questions and answers."""
        return await self._transport.get(Job, _job(job_id))

    async def jobs(
        self, *, status: Sequence[str] = (), name: str | None = None, limit: int | None = None
    ) -> AsyncIterator[JobBrief]:
        """Jobs, newest first; at most ``limit`` of them."""
        cursor, left = None, limit
        while left is None or left > 0:
            size = PAGE_SIZE if left is None else min(PAGE_SIZE, left)
            params = {"status": list(status), "name": name, "limit": size, "cursor": cursor}
            page = await self._transport.get(JobPage, "/v1/jobs", params)
            for job in page.items:
                yield job
            left = None if left is None else left - len(page.items)
            cursor = page.next_cursor
            if cursor is None:
                return

    async def cancel(self, job_id: str, reason: str | None = None) -> None:
        """Ask to stop a job; asking again, or after its end, changes nothing."""
        body = json.dumps({"reason": reason} if reason else {}).encode()
        await self._transport.post(Job, f"{_job(job_id)}/cancel", body)

    async def retry(
        self,
        job_id: str,
        *,
        status: Sequence[ExecutionStatus] = (ExecutionStatus.FAILED, ExecutionStatus.TIMED_OUT),
        new_job_id: str | None = None,
    ) -> Retried:
        """Ask for a new job of exactly those executions of this one that ended in one of these ways."""
        body = {"status": list(status), **({"job_id": new_job_id} if new_job_id else {})}
        return await self._transport.post(Retried, f"{_job(job_id)}/retry", json.dumps(body).encode())

    def events(self, job_id: str, *, after: str | None = None) -> AsyncIterator[JobEvent]:
        """What happens to a job, from its beginning or behind event ``after`` to its end; survives lost connections."""
        return follow_events(self._transport, f"{_job(job_id)}/events", after=after)

    # --- results

    async def executions(
        self,
        job_id: str,
        *,
        question: Sequence[str] = (),
        model: Sequence[str] = (),
        region: Sequence[str] = (),
        status: Sequence[str] = (),
        limit: int | None = None,
    ) -> AsyncIterator[ExecutionBrief]:
        """Executions that have ended, by question, model, region and sample; at most ``limit`` of them.

        A filter keeps what has one of its values; an empty one keeps everything.
        """
        cursor, left = None, limit
        filters = {"question": list(question), "model": list(model), "region": list(region), "status": list(status)}
        while left is None or left > 0:
            size = PAGE_SIZE if left is None else min(PAGE_SIZE, left)
            page = await self._transport.get(
                ExecutionPage, f"{_job(job_id)}/executions", {**filters, "limit": size, "cursor": cursor}
            )
            for execution in page.items:
                yield execution
            left = None if left is None else left - len(page.items)
            cursor = page.next_cursor
            if cursor is None:
                return

    async def execution(self, job_id: str, execution_id: UUID) -> Execution:
        """One whole fact: prompt, answer, attempts, receipt."""
        return await self._transport.get(Execution, f"{_job(job_id)}/executions/{execution_id}")

    async def matrix(
        self, job_id: str, *, merged: bool = False, cursor: str | None = None, limit: int | None = None
    ) -> Matrix:
        """A page of question x model x region; ``merged`` with the newest answers of the jobs that retried it."""
        wanted = {"merged": "true" if merged else None, "cursor": cursor, "limit": limit}
        return await self._transport.get(Matrix, f"{_job(job_id)}/matrix", wanted)

    async def matrix_rows(self, job_id: str, *, limit: int, merged: bool = False) -> tuple[Matrix, list[MatrixRow]]:
        """The first ``limit`` questions of the matrix, over as many pages as that takes."""
        page = first = await self.matrix(job_id, merged=merged)
        rows = list(page.rows)
        while page.next_cursor is not None and len(rows) < limit:
            page = await self.matrix(job_id, merged=merged, cursor=page.next_cursor)
            rows.extend(page.rows)
        return first, rows[:limit]

    async def summary(self, job_id: str) -> Summary:
        """How each model did in each region."""
        return await self._transport.get(Summary, f"{_job(job_id)}/summary")

    async def compare(
        self, job_id: str, *, on_progress: Callable[[ComparisonProgress], None] = lambda _: None, **chosen: Any
    ) -> Comparison:
        """What differs between regions, or models, or two jobs, and how sure one can be.

        A long comparison is waited for; ``on_progress`` is told now and then how far it is. ``chosen``: ``across``,
        ``with_job_id``, ``against``, ``question``, ``model``, ``region``, as for the resource's parameters.
        """
        body = await self._compared(job_id, "json", on_progress, **chosen)
        return self._transport.parse(Comparison, body)

    async def compare_csv(
        self, job_id: str, *, on_progress: Callable[[ComparisonProgress], None] = lambda _: None, **chosen: Any
    ) -> bytes:
        """The same as a table: one row per pair and question."""
        return await self._compared(job_id, "csv", on_progress, **chosen)

    async def _compared(
        self,
        job_id: str,
        written: str,
        on_progress: Callable[[ComparisonProgress], None],
        *,
        across: Across | None = None,
        with_job_id: str | None = None,
        against: str | None = None,
        question: Sequence[str] = (),
        model: Sequence[str] = (),
        region: Sequence[str] = (),
    ) -> bytes:
        params = {
            "across": across,
            "with": with_job_id,
            "against": against,
            "question": list(question),
            "model": list(model),
            "region": list(region),
            "format": written,
        }
        path = f"{_job(job_id)}/comparison"
        return await self._transport.finished(ComparisonProgress, path, params, on_progress)

    async def judge(
        self, job_id: str, execution_id: UUID, outcome: Outcome | None, *, note: str | None = None
    ) -> Judgement:
        """Decide what an answer is, over the rules; ``None`` leaves it to the rules again."""
        body = json.dumps({"outcome": outcome, **({"note": note} if note else {})}).encode()
        return await self._transport.post(Judgement, f"{_job(job_id)}/executions/{execution_id}/outcome", body)

    async def judgements(self, job_id: str) -> Judgements:
        """What people decided about the answers of a job, the newest first."""
        return await self._transport.get(Judgements, f"{_job(job_id)}/judgements")

    async def export(
        self,
        job_id: str,
        export_format: str,
        *,
        question: Sequence[str] = (),
        model: Sequence[str] = (),
        region: Sequence[str] = (),
        status: Sequence[str] = (),
    ) -> AsyncIterator[bytes]:
        """Every execution as one document (``csv``, ``jsonl`` or ``parquet``), in parts as they arrive."""
        params = {
            "format": export_format,
            "question": list(question),
            "model": list(model),
            "region": list(region),
            "status": list(status),
        }
        async with self._transport.stream(f"{_job(job_id)}/export", params) as response:
            async for part in response.aiter_bytes():
                yield part

    async def results(self, job_id: str) -> Results:
        """Every execution that has ended, in memory: as rows or as a data frame."""
        parts = [part async for part in self.export(job_id, "jsonl")]
        return Results.from_jsonl(b"".join(parts))

    # --- the installation

    async def regions(self) -> Regions:
        """Every region with its executors that are alive."""
        return await self._transport.get(Regions, "/v1/regions")

    async def catalog(self) -> CatalogAnswer:
        """Which regions and models jobs may name."""
        return await self._transport.get(CatalogAnswer, "/v1/catalog")


def _job(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"
