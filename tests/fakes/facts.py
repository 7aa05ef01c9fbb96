"""Plans and facts for tests of the ledger: as executors would publish them, only invented."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from parallax.contracts.ids import execution_id
from parallax.contracts.job import Parameters
from parallax.contracts.messages import ExecutionFinished
from parallax.contracts.outcomes import (
    Attempt,
    AttemptOutcome,
    ChatMessage,
    ErrorInfo,
    ExecutionStatus,
    Output,
    Receipt,
    Timings,
    Usage,
)
from parallax.contracts.plan import ALL_REGIONS_LANE, BatchPlan, BatchRef, Cell

START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
REGIONS = ("us", "eu", "apac")


def plan(
    job_id: str = "job-1", question_index: int = 0, *, models: int = 2, regions: Sequence[str] = REGIONS
) -> BatchPlan:
    """One batch of ``models`` x ``regions`` executions in the lane of all regions."""
    cells = tuple(Cell(f"model-{number}", region, 0) for number in range(models) for region in regions)
    ref = BatchRef(job_id=job_id, lane=ALL_REGIONS_LANE, question_index=question_index)
    return BatchPlan(ref=ref, question_id=f"question-{question_index}", cells=cells)


def observed(batch: BatchPlan, cell: Cell, *, text: str = "an answer", seconds: float = 1.5) -> ExecutionFinished:
    """The fact of a completed execution, with everything an executor reports."""
    ended = START + timedelta(seconds=seconds)
    attempt = Attempt(number=1, started_at=START, duration_s=seconds, outcome=AttemptOutcome.OK, http_status=200)
    receipt = Receipt(
        prompt_sha256="00" * 32,
        output_sha256="11" * 32,
        model="smollm2-135m",
        model_requested="smollm2-135m",
        region_claimed=cell.region,
        provider="local",
        executor_id=f"{cell.region}-1",
        parameters=Parameters(temperature=0.0, max_tokens=64),
        timings=Timings(queue_s=0.01, first_byte_s=0.2, total_s=seconds),
        versions={"parallax": "0.1.0"},
    )
    return ExecutionFinished(
        execution_id=execution_id(batch.ref.job_id, batch.question_id, *cell),
        batch=batch.ref,
        batch_size=len(batch.cells),
        question_id=batch.question_id,
        model_id=cell.model_id,
        model="smollm2-135m",
        region=cell.region,
        sample=cell.sample,
        status=ExecutionStatus.COMPLETED,
        observed=True,
        provider_id="cmpl-1",
        messages=(
            ChatMessage(role="system", content=f"You are a helpful assistant based in {cell.region}."),
            ChatMessage(role="user", content="What is the most important invention in history?"),
        ),
        output=Output(text=text),
        finish_reason="stop",
        usage=Usage(prompt_tokens=31, completion_tokens=64),
        receipt=receipt,
        attempts=(attempt,),
        started_at=START,
        completed_at=ended,
    )


def ended(batch: BatchPlan, cell: Cell, status: ExecutionStatus, *, seen: bool = False) -> ExecutionFinished:
    """The fact of an execution that ended without an answer; synthetic unless ``seen``."""
    error = ErrorInfo(error_class="deadline", code="batch_deadline", message="the batch is overdue", retryable=False)
    answered = {"output", "finish_reason", "usage", "receipt", "provider_id", "attempts", "started_at"}
    fields = {name: value for name, value in observed(batch, cell) if name not in answered}
    return ExecutionFinished(**fields | {"status": status, "observed": seen, "error": error})


def every(batch: BatchPlan, *, text: str = "an answer") -> Iterator[ExecutionFinished]:
    """The completed fact of every execution of a batch."""
    return (observed(batch, cell, text=text) for cell in batch.cells)
