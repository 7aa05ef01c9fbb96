"""What the API answers about jobs: typed, documented, and apart from both the messages and the tables.

The API writes these models and its clients read them. Durations are in seconds, moments in RFC 3339 with an offset.
A field that is not known is ``null``, never a guess. Changes within ``/v1`` only add.
"""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from pydantic import JsonValue

from parallax.contracts.job import ExecutionRef
from parallax.contracts.messages import Problem
from parallax.contracts.outcomes import (
    Attempt,
    ChatMessage,
    Counts,
    ErrorInfo,
    ExecutionStatus,
    Output,
    Reason,
    Receipt,
    Usage,
)
from parallax.contracts.plan import JobPlan
from parallax.contracts.rates import Answer, Outcomes


class JobStatus(StrEnum):
    """Where a job is. The last four are ends."""

    SUBMITTED = "submitted"
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"

    @property
    def ended(self) -> bool:
        """Whether nothing of the job will run any more."""
        return self in {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.REJECTED}


class JobBrief(Answer):
    """A job as it stands in a list."""

    id: str
    name: str | None
    status: JobStatus
    reason: Reason | None
    created_at: datetime
    """When this service first heard of the job; lists are in this order, newest first."""
    submitted_at: datetime | None
    accepted_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    questions: int | None
    batches: int | None
    executions: int | None
    counts: Counts
    """Executions that have ended, by status."""
    retry_of: str | None
    metadata: dict[str, JsonValue]
    metadata_omitted: bool = False
    """True in a list when the metadata has more than 4 kB: there it is ``{}``, and ``GET /v1/jobs/{job_id}`` has it."""


class JobPage(Answer):
    """A page of jobs, newest first."""

    items: tuple[JobBrief, ...]
    next_cursor: str | None
    """Give it as ``cursor`` to read on; ``null`` on the last page."""


class Batch(Answer):
    """One question in one lane."""

    lane: str
    question_index: int
    question_id: str
    expected: int
    recorded: int
    counts: Counts
    opened_at: datetime | None
    deadline_at: datetime | None
    completed_at: datetime | None
    closed_status: ExecutionStatus | None
    """Set when the batch was ended from outside: what its missing executions were recorded as."""


class BatchPage(Answer):
    """A page of batches, in the order of their questions."""

    items: tuple[Batch, ...]
    next_cursor: str | None


class LaneProgress(Answer):
    """How far one walk through the questions is."""

    lane: str
    batches_opened: int
    batches_completed: int
    counts: Counts
    open: tuple[Batch, ...]
    """Batches that are open now; at most 10 are listed."""


class Tokens(Answer):
    """Tokens as the providers counted them."""

    prompt: int
    completion: int


class Cost(Answer):
    """An estimate from the catalog's price table: seconds of calls x price of the GPU x the region's multiplier,
    shared among the concurrent requests a container takes. It leaves out idle and starting containers.
    """

    amount: float
    currency: str
    prices_as_of: str
    complete: bool
    """False when some of the executions ran where the catalog has no price."""


class JobTimings(Answer):
    """Where the time of a job went; ``null`` for what has not happened."""

    waited_s: float | None
    """From the acceptance to the start."""
    ran_s: float | None
    """From the start to the end, or until now."""


class Running(Answer):
    """An execution that a live executor holds now."""

    execution_id: UUID
    question_id: str
    model_id: str
    region: str
    executor_id: str
    since: datetime


class Job(JobBrief):
    """All about a job but its questions and answers."""

    place_in_queue: int | None
    """1 for the next job to start; ``null`` unless it is queued."""
    not_started: int | None
    """Executions that will never run, because the job ended first."""
    lanes: tuple[LaneProgress, ...]
    tokens: Tokens
    cost: Cost | None
    timings: JobTimings
    running: tuple[Running, ...]
    """At most 500 are listed."""
    plan: JobPlan | None
    spec: dict[str, JsonValue] | None
    """The job as submitted, without its questions; ``null`` until it is accepted."""
    problems: tuple[Problem, ...]
    """Why it was rejected."""


class Submitted(Answer):
    """A submission that is safely on its way."""

    id: str
    status: JobStatus
    executions: int
    batches: int


class ExecutionBrief(Answer):
    """An execution as it stands in a list."""

    id: UUID
    job_id: str
    lane: str
    question_index: int
    question_id: str
    model_id: str
    model: str
    """The model's name in the catalog."""
    region: str
    sample: int
    status: ExecutionStatus
    observed: bool
    """False for one that was recorded because nobody would run it any more."""
    finish_reason: str | None
    refused: bool
    output_chars: int | None
    excerpt: str | None
    """The first 500 characters of the answer."""
    prompt_tokens: int | None
    completion_tokens: int | None
    attempt_count: int
    duration_s: float | None
    started_at: datetime | None
    completed_at: datetime
    error: ErrorInfo | None


class ExecutionPage(Answer):
    """A page of executions by question, model, region and sample."""

    items: tuple[ExecutionBrief, ...]
    next_cursor: str | None


class Execution(Answer):
    """The whole fact."""

    id: UUID
    job_id: str
    lane: str
    question_index: int
    question_id: str
    model_id: str
    model: str
    region: str
    sample: int
    status: ExecutionStatus
    observed: bool
    provider_id: str | None
    messages: tuple[ChatMessage, ...]
    """The prompt, as it was sent."""
    output: Output | None
    finish_reason: str | None
    usage: Usage | None
    receipt: Receipt | None
    error: ErrorInfo | None
    attempts: tuple[Attempt, ...]
    started_at: datetime | None
    completed_at: datetime
    duration_s: float | None
    recorded_at: datetime


class CellExecution(Answer):
    """One execution in a cell of the matrix."""

    id: UUID
    job_id: str
    """Where it ran: the job that was asked for, or one that repeats a part of it."""
    sample: int
    status: ExecutionStatus
    refused: bool
    output_chars: int | None
    duration_s: float | None
    excerpt: str | None


class MatrixCell(Answer):
    """What one model in one region did with a question."""

    model_id: str
    region: str
    counts: Counts
    executions: tuple[CellExecution, ...]
    """Every sample that has ended, in order."""


class MatrixRow(Answer):
    """One question."""

    question_index: int
    question_id: str
    text: str | None
    """The first 500 characters of the question, where they are known."""
    cells: tuple[MatrixCell, ...]


class Matrix(Answer):
    """A page of question x model x region."""

    job_id: str
    jobs: tuple[str, ...]
    """Whose answers are shown: the job itself first, then, when they are merged, those that repeat parts of it."""
    models: tuple[str, ...]
    regions: tuple[str, ...]
    samples: int | None
    rows: tuple[MatrixRow, ...]
    next_cursor: str | None


class Latency(Answer):
    """Durations of completed executions, attempts and pauses included."""

    p50: float
    p95: float
    p99: float


class SummaryRow(Answer):
    """How one model did in one region."""

    model_id: str
    model: str
    region: str
    executions: int
    counts: Counts
    success_rate: float
    latency_s: Latency | None
    tokens: Tokens
    cost: Cost | None
    attempts: int
    retried: int
    """Executions that needed more than one attempt."""
    refusals: int
    empties: int
    """Completed with an empty text."""
    outcomes: Outcomes
    """What came of the executions by documented rules, corrections by hand included."""


class Summary(Answer):
    """How each model did in each region."""

    job_id: str
    rows: tuple[SummaryRow, ...]
    executions: int
    counts: Counts
    tokens: Tokens
    cost: Cost | None
    rules_version: int
    """Of the rules that decide what is a refusal."""


class Progress(Answer):
    """What the event ``progress`` of a stream carries."""

    status: JobStatus
    executions: int | None
    counts: Counts


class Retried(Answer):
    """A derived job on its way."""

    id: str
    status: JobStatus
    retry_of: str
    executions: int
    batches: int
    only: tuple[ExecutionRef, ...]
    """The first 1,000 executions that are repeated."""
