"""Which model calls were made twice, and whether a lost executor explains it. Pure.

An execution may be called again only when the executor that had it was killed, or lost its connection to the broker,
after it had taken the task and before the broker knew the task as done. Anything else is a fault of the product.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

TAKEN_S: Final = 5.0
"""How long before its first call an executor may have held a task: the task waited for a slot on a busy machine."""
ACKED_S: Final = 10.0
"""How long after its fact was recorded the broker may not have known the task as done: the acknowledgement follows the
fact at once, on a busy machine within seconds."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One call as a model server saw it. Times are seconds since 1970."""

    region: str
    execution_id: UUID
    executor: str
    """The process that called: the replica's name, a dot, and how often the replica was started before."""
    attempt: int
    received_at: float
    begun: bool = False
    """Whether its answer began."""
    finished_at: float | None = None
    aborted_at: float | None = None
    """When the client hung up before the end."""
    failed: bool = False
    """Whether it was answered with an error."""

    @property
    def replica(self) -> str:
        """The replica whose process called."""
        return replica_of(self.executor)


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What was done to which replicas, and when."""

    cause: str
    began_at: float
    ended_at: float
    replicas: frozenset[str] | None = None
    """``None``: all of them."""
    disconnects: bool = False
    """Whether executors among them lost what they held: they were killed, or lost their connection to the broker."""

    def strikes(self, replica: str) -> bool:
        """Whether a replica is among the victims."""
        return self.replicas is None or replica in self.replicas

    def overlaps(self, begin: float, end: float) -> bool:
        """Whether it lasted at any moment of an interval."""
        return self.began_at <= end and self.ended_at >= begin


@dataclass(frozen=True, slots=True)
class Run:
    """What one holder of a task made of it: a call, and the retries of calls that failed."""

    calls: tuple[ModelCall, ...]

    @property
    def executor(self) -> str:
        """The process that began it."""
        return self.calls[0].executor

    @property
    def replica(self) -> str:
        """The replica that began it."""
        return self.calls[0].replica

    @property
    def began_at(self) -> float:
        """When its first call arrived."""
        return self.calls[0].received_at

    def continued_by(self, call: ModelCall) -> bool:
        """Whether a call is the retry of this run's last one, which must have failed, and have ended before it."""
        last = self.calls[-1]
        ended_at = last.finished_at if last.aborted_at is None else last.aborted_at
        unanswered = last.failed or last.aborted_at is not None
        in_time = ended_at is not None and ended_at <= call.received_at
        return unanswered and in_time and call.attempt == last.attempt + 1


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A run that would not have been needed, the run before it, and the loss that explains it."""

    execution_id: UUID
    first: Run
    again: Run
    cause: Disturbance | None


def replica_of(executor: str) -> str:
    """The replica to which a process belongs."""
    return executor.rpartition(".")[0]


def duplicates(
    calls: Iterable[ModelCall],
    disturbances: Collection[Disturbance],
    recorded: Mapping[UUID, tuple[str, float]],
) -> list[Duplicate]:
    """Every run beyond the first of its execution.

    ``recorded`` says whose fact is in the ledger, and since when: a loss long after that explains nothing.
    """
    by_execution: dict[UUID, list[ModelCall]] = defaultdict(list)
    for call in calls:
        by_execution[call.execution_id].append(call)
    losses = [disturbance for disturbance in disturbances if disturbance.disconnects]
    return [
        duplicate
        for key, own in by_execution.items()
        if len(own) > 1
        for duplicate in _explained(runs(own), losses, recorded.get(key))
    ]


def runs(calls: Iterable[ModelCall]) -> list[Run]:
    """The calls of one execution, grouped by who held its task; in the order in which the runs began.

    A retry belongs to the run of its own process; else to the run of a process that handed the task back.
    """
    found: list[Run] = []
    for call in sorted(calls, key=lambda each: each.received_at):
        own = [at for at, run in enumerate(found) if run.continued_by(call)]
        own.sort(key=lambda at: found[at].calls[-1].executor == call.executor)
        if own:
            found[own[-1]] = Run((*found[own[-1]].calls, call))
        else:
            found.append(Run((call,)))
    return found


def _explained(found: list[Run], losses: list[Disturbance], recorded: tuple[str, float] | None) -> list[Duplicate]:
    """Give each loss to at most one later run for each earlier one: a broker returns what was lost once."""
    used: set[tuple[int, int]] = set()
    duplicate: list[Duplicate] = []
    for at, again in enumerate(found[1:], start=1):
        cause = None
        for before in reversed(range(at)):
            for number, loss in enumerate(losses):
                if (before, number) not in used and _explains(loss, found[before], again, recorded):
                    used.add((before, number))
                    cause = loss
                    break
            if cause is not None:
                break
        duplicate.append(Duplicate(again.calls[0].execution_id, found[at - 1], again, cause))
    return duplicate


def _explains(loss: Disturbance, first: Run, again: Run, recorded: tuple[str, float] | None) -> bool:
    """Whether a loss took the task from one of two runs, so that the other had to be made.

    Usually it struck the first. Or it struck the second while its task still waited there: the task was delivered to
    somebody else, who called first.
    """
    known_done_at = recorded[1] + ACKED_S if recorded is not None and recorded[0] == first.executor else again.began_at
    if loss.strikes(first.replica) and loss.overlaps(first.began_at - TAKEN_S, min(again.began_at, known_done_at)):
        return True
    waited = loss.overlaps(again.began_at - TAKEN_S, again.began_at)
    return loss.strikes(again.replica) and waited and loss.began_at <= first.began_at
