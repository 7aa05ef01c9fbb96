"""Where each message goes: the one table from which the broker's topology is declared.

One topic exchange carries everything; a message's routing key follows from its type (and region). Queue names
and keys are given without the installation's namespace, which the bus puts in front.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from parallax.contracts.heartbeat import ExecutorHeartbeat
from parallax.contracts.messages import (
    BatchCompleted,
    BatchIncomplete,
    BatchOpened,
    CancelJob,
    CloseBatch,
    EncodedSubmitJob,
    ExecutionFinished,
    ExecutionTask,
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
    WaitingTask,
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
    news: bool = False
    """Holds only what readers may do without: they drop kinds they do not know, which a newer version published.

    On every other queue an unknown kind goes to the dead letters, from where it can be replayed after the upgrade. A
    new kind that must not wait for that gets a queue of its own.
    """


SUBMISSIONS: Final = Queue("dispatcher.submissions", ("job.submit",))
PROGRESS: Final = Queue("dispatcher.progress", ("job.cancel", "batch.completed", "batch.incomplete"))
FACTS: Final = Queue("results.facts", ("batch.opened", "execution.finished"))
BATCHES: Final = Queue("results.batches", ("batch.close", "batch.inspect"))
EVENTS: Final = Queue(
    "results.events",
    ("job.accepted", "job.rejected", "job.started", "job.cancelled", "job.finished"),
    news=True,
)
HEARTBEATS: Final = Queue("results.heartbeats", ("executor.heartbeat",), news=True)
CANCELLATIONS: Final = Queue(
    "cancellations", ("job.cancelled", "inspection.fence", "fence.cancellations"), kind=QueueKind.STREAM, news=True
)
DEAD_EXECUTIONS: Final = Queue("dead.executions", ("execution.run.*", "execution.wait.#"), dead=True)
"""Tasks that no executor could handle: the dispatcher turns them into failed facts."""
DEAD_LETTERS: Final = Queue(
    "dead.letters",
    ("job.*", "batch.*", "execution.finished", "executor.*", "inspection.*", "unreadable.#"),
    dead=True,
)
"""Every other message that could not be handled, kept for people to look at."""

RETIRED_BINDINGS: Final[dict[str, tuple[str, ...]]] = {
    "results.events": ("batch.opened",),  # its consumer refuses it; results.facts has it instead
}
"""Keys, by the name of the queue, that an earlier version bound and this one must not: brokers keep bindings.

A key belongs here once no supported version needs it, and stays for as long as an installation may still have it.
"""

HEARTBEAT_EXPIRES_S: Final = 30
"""A heartbeat older than this says nothing; the broker drops it, so that they cannot pile up."""


def executions(region: str) -> Queue:
    """The queue of tasks of one region."""
    return Queue(f"executions.{region}", (f"execution.run.{region}",))


def waiting(region: str, model: str) -> Queue:
    """The queue of a region's tasks whose model does not accept calls at the moment."""
    return Queue(f"waiting.{region}.{model}", (_waiting_key(region, model),))


def region_queues(region: str, models: Iterable[str]) -> tuple[Queue, ...]:
    """Every queue that may hold tasks of a region: its own, and the waiting queue of each of its models."""
    return (executions(region), *(waiting(region, model) for model in models))


def on_demand(name_or_key: str, regions: Iterable[str]) -> Queue | None:
    """The waiting queue that has a name or a routing key; ``None`` when it belongs to none of the regions.

    Waiting queues are declared by the first consumer or publisher that needs them: a service knows the regions of its
    installation, while models come and go with the catalog.
    """
    for region in regions:
        for prefix in (f"waiting.{region}.", _waiting_key(region, "")):
            if name_or_key.startswith(prefix) and len(name_or_key) > len(prefix):
                return waiting(region, name_or_key.removeprefix(prefix))
    return None


def _waiting_key(region: str, model: str) -> str:
    return f"execution.wait.{region}.{model}"


def topology(regions: Iterable[str]) -> tuple[Queue, ...]:
    """Every queue of an installation that exists from the start; see ``on_demand`` for the others."""
    fixed = (
        SUBMISSIONS, PROGRESS, FACTS, BATCHES, EVENTS, HEARTBEATS, CANCELLATIONS, DEAD_EXECUTIONS, DEAD_LETTERS,
    )  # fmt: skip
    return (*fixed, *(executions(region) for region in regions))


_KEYS: Final[dict[type[Message], str]] = {
    SubmitJob: "job.submit",
    EncodedSubmitJob: "job.submit",
    CancelJob: "job.cancel",
    ExecutionTask: "execution.run.{region}",
    WaitingTask: "execution.wait.{region}.{model}",
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
    return key.format(region=message.region, model=message.model) if isinstance(message, ExecutionTask) else key


def key_of(model: type[Message], region: str) -> str:
    """The key that messages of a type have in a region."""
    return _KEYS[model].format(region=region)


def expires_s(message: Message) -> int | None:
    """Seconds after which an unread message is worthless; ``None`` for all that must arrive."""
    return HEARTBEAT_EXPIRES_S if isinstance(message, ExecutorHeartbeat) else None
