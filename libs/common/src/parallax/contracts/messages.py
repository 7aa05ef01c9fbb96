"""Every message that crosses the broker. Changes are additive; golden samples of each version are tested.

A message is one JSON document. ``kind`` tells messages of one queue apart; ``version`` counts incompatible
changes, of which there were none so far. Producers outside Parallax may leave both out where a queue takes
only one kind.
"""

from datetime import datetime
from typing import Annotated, Literal, Self, get_args
from uuid import UUID

from pydantic import Field, JsonValue, TypeAdapter

from parallax.contracts.job import JobSpec, Limits, Parameters, Question
from parallax.contracts.model import JobId, Name, RegionName, Strict, Timestamp
from parallax.contracts.outcomes import (
    Attempt,
    ChatMessage,
    Counts,
    ErrorInfo,
    ExecutionStatus,
    JobOutcome,
    Output,
    Reason,
    Receipt,
    Text,
    Usage,
)
from parallax.contracts.plan import BatchPlan, BatchRef, Cell, JobPlan

Version = Literal[1]


# --- commands ------------------------------------------------------------------------------------------------


class SubmitJob(Strict):
    """Asks for a job. Repeating it with the same id and content changes nothing."""

    kind: Literal["submit_job"] = "submit_job"
    version: Version = 1
    job_id: JobId
    job: JobSpec
    submitted_at: Timestamp | None = None


class CancelJob(Strict):
    """Asks to stop a job. Valid before the job arrived, while it runs, twice, and after its end."""

    kind: Literal["cancel_job"] = "cancel_job"
    version: Version = 1
    job_id: JobId
    reason: Text = "cancelled by user"
    requested_at: Timestamp | None = None


class ExecutionTask(Strict):
    """One execution to run in one region."""

    kind: Literal["execution_task"] = "execution_task"
    version: Version = 1
    execution_id: UUID
    batch: BatchRef
    batch_size: Annotated[int, Field(ge=1)]
    question_id: Name
    model_id: Name
    model: Name
    """The model's name in the catalog."""
    region: RegionName
    sample: Annotated[int, Field(ge=0)]
    messages: tuple[ChatMessage, ...]
    parameters: Parameters
    """As they are to be sent: the seed is that of this sample."""
    limits: Limits
    published_at: Timestamp
    deadline_at: Timestamp
    """The batch's deadline: after it no call starts and none goes on."""
    prior_attempts: tuple[Attempt, ...] = ()
    """Attempts made before an executor handed the task back."""


class CloseBatch(Strict):
    """Ends a batch: whatever has no fact yet gets a synthetic one of this status."""

    kind: Literal["close_batch"] = "close_batch"
    version: Version = 1
    batch: BatchPlan
    status: ExecutionStatus
    error: ErrorInfo
    closed_at: Timestamp


class InspectBatch(Strict):
    """Asks results how far a batch is; answered by ``BatchCompleted`` or ``BatchIncomplete``."""

    kind: Literal["inspect_batch"] = "inspect_batch"
    version: Version = 1
    batch: BatchPlan
    token: Text | None = None
    """Of the fence of this round. Without one nothing can be called missing."""


# --- facts and events ----------------------------------------------------------------------------------------


class ExecutionFinished(Strict):
    """The fact: the terminal outcome of an execution.

    ``observed`` facts come from an executor that held the task; synthetic ones were written for an execution
    that nobody will run any more. The first fact stays, save that an observed one replaces a synthetic one.
    """

    kind: Literal["execution_finished"] = "execution_finished"
    version: Version = 1
    execution_id: UUID
    batch: BatchRef
    batch_size: Annotated[int, Field(ge=1)]
    question_id: Name
    model_id: Name
    model: Name
    region: RegionName
    sample: Annotated[int, Field(ge=0)]
    status: ExecutionStatus
    observed: bool
    provider_id: Text | None = None
    """The provider's own name of the call that gave the outcome."""
    messages: tuple[ChatMessage, ...] = ()
    output: Output | None = None
    finish_reason: Text | None = None
    usage: Usage | None = None
    receipt: Receipt | None = None
    error: ErrorInfo | None = None
    attempts: tuple[Attempt, ...] = ()
    started_at: Timestamp | None = None
    """When the first attempt started; ``None`` when no call was made."""
    completed_at: Timestamp

    @classmethod
    def failed(
        cls,
        task: ExecutionTask,
        error: ErrorInfo,
        *,
        observed: bool,
        completed_at: datetime,
        messages: tuple[ChatMessage, ...] = (),
        attempts: tuple[Attempt, ...] = (),
    ) -> Self:
        """The fact of a task that ended without an answer."""
        return cls(
            execution_id=task.execution_id,
            batch=task.batch,
            batch_size=task.batch_size,
            question_id=task.question_id,
            model_id=task.model_id,
            model=task.model,
            region=task.region,
            sample=task.sample,
            status=ExecutionStatus.FAILED,
            observed=observed,
            messages=messages,
            error=error,
            attempts=attempts,
            started_at=attempts[0].started_at if attempts else None,
            completed_at=completed_at,
        )


class BatchCompleted(Strict):
    """Every execution of the batch has a fact. Sent again whenever results is asked or sees a repetition."""

    kind: Literal["batch_completed"] = "batch_completed"
    version: Version = 1
    batch: BatchRef
    counts: Counts


class BatchIncomplete(Strict):
    """What a batch still lacks."""

    kind: Literal["batch_incomplete"] = "batch_incomplete"
    version: Version = 1
    batch: BatchRef
    recorded: int
    running: int
    """Executions without a fact that executors say they hold, or held a moment ago."""
    missing: tuple[Cell, ...]
    """Executions that are nowhere: neither recorded, nor waiting, nor held by an executor."""
    token: Text | None = None
    """That of the ``InspectBatch`` that this answers."""
    undecided: int = 0
    """Executions that may be somewhere: not every executor of their region has answered the fence."""


class JobAccepted(Strict):
    """The job is stored and will run; carries all about it but its questions."""

    kind: Literal["job_accepted"] = "job_accepted"
    version: Version = 1
    job_id: JobId
    name: str
    job: dict[str, JsonValue]
    """The job as submitted, without ``questions`` and ``only``."""
    plan: JobPlan
    questions: int
    batches: int
    executions: int
    accepted_at: Timestamp
    retry_of: JobId | None = None


class Problem(Strict):
    """One thing that is wrong with a document: where (RFC 6901 pointer), what, and what is allowed."""

    pointer: str
    message: str
    allowed: str | None = None


class JobRejected(Strict):
    """The submission was refused. ``job_id`` is ``None`` when the message did not give a usable one."""

    kind: Literal["job_rejected"] = "job_rejected"
    version: Version = 1
    job_id: JobId | None
    reason: Reason
    """Code ``invalid`` or ``conflict`` (the id belongs to another job)."""
    problems: tuple[Problem, ...]
    rejected_at: Timestamp


class JobStarted(Strict):
    """The job left the waiting line and its first batches are open."""

    kind: Literal["job_started"] = "job_started"
    version: Version = 1
    job_id: JobId
    started_at: Timestamp


class BatchOpened(Strict):
    """The executions of a batch were published."""

    kind: Literal["batch_opened"] = "batch_opened"
    version: Version = 1
    batch: BatchRef
    question_id: Name
    question: Question | None = None
    """The whole question, so that a retry can ask it again whatever became of its executions."""
    executions: int
    opened_at: Timestamp
    deadline_at: Timestamp


class JobCancelled(Strict):
    """No work of this job may start or go on. Kept in the cancellation stream that every executor follows."""

    kind: Literal["job_cancelled"] = "job_cancelled"
    version: Version = 1
    job_id: JobId
    reason: Reason
    cancelled_at: Timestamp


class JobFinished(Strict):
    """The end of a job: every batch it opened is complete. Repetitions say the same."""

    kind: Literal["job_finished"] = "job_finished"
    version: Version = 1
    job_id: JobId
    outcome: JobOutcome
    reason: Reason
    counts: Counts
    """As of the end; an answer that was in flight when its batch was closed may still replace a synthetic fact."""
    not_started: int
    """Executions of batches that were never opened."""
    finished_at: Timestamp


class RunningExecution(Strict):
    """One execution that an executor holds."""

    execution_id: UUID
    job_id: JobId
    question_id: Name
    model_id: Name
    since: Timestamp


class FenceReading(Strict):
    """An executor's answer to an ``InspectionFence``.

    ``executions`` are those of the fence's batches that the executor has held at any moment since three minutes before
    it read the fence, or since its start: those it holds, those it handed back and those whose fact it published.
    """

    token: Text
    executions: tuple[UUID, ...]


class ExecutorHeartbeat(Strict):
    """A sign of life of one executor, every few seconds."""

    kind: Literal["executor_heartbeat"] = "executor_heartbeat"
    version: Version = 1
    executor_id: Name
    region: RegionName
    budget: int
    running: tuple[RunningExecution, ...]
    models: tuple[Name, ...]
    endpoint_state: Literal["ready", "throttled", "unavailable"]
    last_error: Text | None = None
    started_at: Timestamp
    sent_at: Timestamp
    stopping: bool = False
    """True in the last heartbeat of an executor that leaves."""
    fences: tuple[FenceReading, ...] = ()
    """Answers to the fences read in the last minute; none while the executor is leaving."""


class InspectionFence(Strict):
    """Written to the cancellation stream after the queues of ``regions`` were seen empty.

    An execution that waited or was delivered before it is held by an executor that reads it, or was, or has a fact.
    """

    kind: Literal["inspection_fence"] = "inspection_fence"
    version: Version = 1
    token: Text
    regions: tuple[RegionName, ...]
    batches: tuple[BatchRef, ...]


class FenceMarker(Strict):
    """Written to a stream by a follower, to know that it has read everything that was there before."""

    kind: Literal["fence_marker"] = "fence_marker"
    version: Version = 1
    token: str


Message = (
    SubmitJob
    | CancelJob
    | ExecutionTask
    | CloseBatch
    | InspectBatch
    | ExecutionFinished
    | BatchCompleted
    | BatchIncomplete
    | JobAccepted
    | JobRejected
    | JobStarted
    | BatchOpened
    | JobCancelled
    | JobFinished
    | ExecutorHeartbeat
    | InspectionFence
    | FenceMarker
)
"""Any message."""

MESSAGE_TYPES: tuple[type[Message], ...] = get_args(Message)

_ANY: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def encode(message: Message) -> bytes:
    """The message as one JSON document in UTF-8."""
    return message.model_dump_json().encode()


def decode(body: bytes) -> Message:
    """The message in a body of which any kind is expected.

    Raises:
        pydantic.ValidationError: The body is not a message of this version.
    """
    return _ANY.validate_json(body)
