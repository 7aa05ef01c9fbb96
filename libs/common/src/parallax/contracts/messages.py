"""Every message that crosses the broker. Changes are additive; golden samples of each version are tested.

A message is one JSON document. ``kind`` tells messages of one queue apart; ``version`` counts incompatible
changes, of which there were none so far: a new value of a closed set (a status, a barrier) is one. Producers outside
Parallax may leave both out where a queue takes only one kind.

Services read each other's messages with :func:`decode` or :func:`parallax.contracts.model.read`, which ignore fields
that a newer version added. ``SubmitJob`` and ``CancelJob`` come from users, who must see their mistakes: unknown keys
are refused, and :func:`encode` leaves out keys that hold their default, so that an older reader meets a new key only
where somebody uses it.
"""

import json
from datetime import datetime
from typing import Annotated, Final, Literal, Self, get_args
from uuid import UUID

from pydantic import Field, JsonValue, TypeAdapter, ValidationError

from parallax.contracts.heartbeat import ExecutorHeartbeat
from parallax.contracts.job import JobSpec, Limits, Parameters, Question
from parallax.contracts.model import READING, JobId, Name, RegionName, Strict, Timestamp, Version
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
from parallax.contracts.problem import Problem as Problem  # noqa: PLC0414 - readers of messages look for it here

# --- commands ------------------------------------------------------------------------------------------------


class SubmitJob(Strict):
    """Asks for a job. Repeating it with the same id and content changes nothing."""

    kind: Literal["submit_job"] = "submit_job"
    version: Version = 1
    job_id: JobId
    job: JobSpec
    submitted_at: Timestamp | None = None


class EncodedSubmitJob(Strict):
    """A ``SubmitJob`` to publish whose job was checked and stays as it was written, so that it is not encoded again.

    It exists on the publishing side alone: what arrives is a ``SubmitJob``.
    """

    kind: Literal["submit_job"] = "submit_job"
    version: Version = 1
    job_id: JobId
    body: bytes
    """The whole message, as ``encode`` gives it."""

    @classmethod
    def of(cls, job_id: str, job: bytes, submitted_at: datetime) -> Self:
        """The message that submits the job in a JSON document."""
        envelope = {"kind": "submit_job", "version": 1, "job_id": job_id, "submitted_at": submitted_at.isoformat()}
        return cls(job_id=job_id, body=json.dumps(envelope).encode()[:-1] + b', "job": ' + job + b"}")


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
    """Attempts made before an executor handed the task back or moved it."""
    not_before: Timestamp | None = None
    """When the next call may start: set by an executor that moves a task which backs off after a failed call."""


class WaitingTask(ExecutionTask):
    """The same message, addressed to the waiting queue of its model instead of the queue of its region.

    Only the routing key differs: whoever reads it, from a queue or from the dead letters, sees an ``ExecutionTask``.
    """


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


ReceivedMessage = (
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
"""Any message, as a consumer reads it."""

Message = ReceivedMessage | EncodedSubmitJob
"""Any message, as a producer publishes it."""

MESSAGE_TYPES: tuple[type[ReceivedMessage], ...] = get_args(ReceivedMessage)

KINDS: Final = frozenset(str(model.model_fields["kind"].default) for model in MESSAGE_TYPES)
"""The kinds that this version knows."""

_ANY: TypeAdapter[ReceivedMessage] = TypeAdapter(Annotated[ReceivedMessage, Field(discriminator="kind")])


def encode(message: Message) -> bytes:
    """The message as one JSON document in UTF-8."""
    if isinstance(message, EncodedSubmitJob):
        return message.body
    if isinstance(message, SubmitJob | CancelJob):
        head = f'{{"kind":"{message.kind}","version":{message.version},'
        return (head + message.model_dump_json(exclude_defaults=True)[1:]).encode()
    return message.model_dump_json().encode()


def decode(body: bytes) -> ReceivedMessage:
    """The message in a body of which any kind is expected, written by this version or another one.

    Raises:
        pydantic.ValidationError: The body is not a message that this version can read; see :func:`unknown_kind`.
    """
    message = _ANY.validate_json(body, extra="ignore", context=READING)
    if isinstance(message, SubmitJob | CancelJob):
        return _ANY.validate_json(body)
    return message


def unknown_kind(error: ValidationError) -> str | None:
    """The kind of the message that could not be read, if the reason is that this version does not know it."""
    for problem in error.errors(include_url=False):
        match problem:
            case {"type": "union_tag_invalid", "loc": (), "input": {"kind": str(kind)}}:
                return kind
            case {"type": "literal_error", "loc": ("kind",), "input": str(kind)} if kind not in KINDS:
                return kind
    return None
