"""Where each message goes: the one table from which the broker's topology is declared.

One topic exchange carries everything; a message's routing key follows from its type (and region). Queue names
and keys are given without the installation's namespace, which the bus puts in front.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from parallax.contracts.messages import (
    BatchCompleted,
    BatchIncomplete,
    BatchOpened,
    CancelJob,
    CloseBatch,
    ExecutionFinished,
    ExecutionTask,
    ExecutorHeartbeat,
    FenceMarker,
    InspectBatch,
    InspectionFence,
    JobAccepted,
    JobCancelled,
    JobFinished,
    JobRejected,
    JobStarted,
    Message,
    SubmitJob,
)


class QueueKind(StrEnum):
    """What a queue promises."""

    QUORUM = "quorum"
    STREAM = "stream"


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue, the routing keys bound to it, and what becomes of messages nobody could handle."""

    name: str
    keys: tuple[str, ...]
    kind: QueueKind = QueueKind.QUORUM
    dead: bool = False
    """Holds dead letters: bound to the dead-letter exchange and itself without one."""


SUBMISSIONS: Final = Queue("dispatcher.submissions", ("job.submit",))
PROGRESS: Final = Queue("dispatcher.progress", ("job.cancel", "batch.completed", "batch.incomplete"))
FACTS: Final = Queue("results.facts", ("batch.opened", "execution.finished"))
BATCHES: Final = Queue("results.batches", ("batch.close", "batch.inspect"))
EVENTS: Final = Queue(
    "results.events",
    ("job.accepted", "job.rejected", "job.started", "job.cancelled", "job.finished"),
)
HEARTBEATS: Final = Queue("results.heartbeats", ("executor.heartbeat",))
CANCELLATIONS: Final = Queue(
    "cancellations", ("job.cancelled", "inspection.fence", "fence.cancellations"), kind=QueueKind.STREAM
)
DEAD_EXECUTIONS: Final = Queue("dead.executions", ("execution.run.*",), dead=True)
"""Tasks that no executor could handle: the dispatcher turns them into failed facts."""
DEAD_LETTERS: Final = Queue(
    "dead.letters",
    ("job.*", "batch.*", "execution.finished", "executor.*", "unreadable.#"),
    dead=True,
)
"""Every other message that could not be handled, kept for people to look at."""

HEARTBEAT_EXPIRES_S: Final = 30
"""A heartbeat older than this says nothing; the broker drops it, so that they cannot pile up."""


def executions(region: str) -> Queue:
    """The queue of tasks of one region."""
    return Queue(f"executions.{region}", (f"execution.run.{region}",))


def topology(regions: Iterable[str]) -> tuple[Queue, ...]:
    """Every queue of an installation."""
    fixed = (
        SUBMISSIONS, PROGRESS, FACTS, BATCHES, EVENTS, HEARTBEATS, CANCELLATIONS, DEAD_EXECUTIONS, DEAD_LETTERS,
    )  # fmt: skip
    return (*fixed, *(executions(region) for region in regions))


_KEYS: Final[dict[type[Message], str]] = {
    SubmitJob: "job.submit",
    CancelJob: "job.cancel",
    ExecutionTask: "execution.run.{region}",
    ExecutionFinished: "execution.finished",
    CloseBatch: "batch.close",
    InspectBatch: "batch.inspect",
    BatchCompleted: "batch.completed",
    BatchIncomplete: "batch.incomplete",
    BatchOpened: "batch.opened",
    JobAccepted: "job.accepted",
    JobRejected: "job.rejected",
    JobStarted: "job.started",
    JobCancelled: "job.cancelled",
    JobFinished: "job.finished",
    ExecutorHeartbeat: "executor.heartbeat",
    InspectionFence: "inspection.fence",
    FenceMarker: "fence.cancellations",
}


def routing_key(message: Message) -> str:
    """The routing key of a message."""
    key = _KEYS[type(message)]
    return key.format(region=message.region) if isinstance(message, ExecutionTask) else key


def key_of(model: type[Message], region: str) -> str:
    """The key that messages of a type have in a region."""
    return _KEYS[model].format(region=region)


def expires_s(message: Message) -> int | None:
    """Seconds after which an unread message is worthless; ``None`` for all that must arrive."""
    return HEARTBEAT_EXPIRES_S if isinstance(message, ExecutorHeartbeat) else None
