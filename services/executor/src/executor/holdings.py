"""What this executor has held lately: its answer to whoever asks where an execution is.

A fence says: the queues of your region were empty before this was written. An answer to it lists every execution of
the fence's batches that was here at any moment since ``REMEMBER_S`` before it was read. It is given only while all of
that is still known, so a list never lacks anything. Ages are counted on this process's monotonic clock alone.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from parallax.clock import Clock
from parallax.contracts.heartbeat import FenceReading
from parallax.contracts.messages import InspectionFence
from parallax.contracts.plan import BatchRef

REMEMBER_S: Final = 180.0
"""An execution that left this long before a fence was read is recorded by now: its fact may have been with a writer
that was stopped (the broker takes it back after 45 s) or cut off from the database (it exits after 120 s)."""
ANSWER_S: Final = 60.0
"""How long a fence is answered; a round of inspection lasts about as long."""
MAX_FENCES: Final = 64
"""Fences answered at once; each dispatcher publishes at most one a second, and few of them concern one batch."""
MAX_LEFT: Final = 50_000
"""About 10 MB; an executor that ends more than 200 executions a second answers only while it is less busy."""


@dataclass(frozen=True, slots=True)
class _Fence:
    read_s: float
    batches: frozenset[BatchRef]


@dataclass(frozen=True, slots=True)
class _Left:
    at_s: float
    execution_id: UUID
    batch: BatchRef


class Holdings:
    """Remembers what left, and answers fences."""

    def __init__(self, clock: Clock, region: str, on_fence: Callable[[], None], *, most: int = MAX_LEFT) -> None:
        self._clock = clock
        self._region = region
        self._on_fence = on_fence
        self._most = most
        self._left: deque[_Left] = deque()
        self._fences: OrderedDict[str, _Fence] = OrderedDict()
        self._complete_since_s = float("-inf")
        """Everything that left after this moment is remembered."""

    def left(self, execution_id: UUID, batch: BatchRef) -> None:
        """An execution is here no more: its fact was published, or it was handed back."""
        self._left.append(_Left(self._clock.monotonic(), execution_id, batch))
        while len(self._left) > self._most:
            self._forget_oldest()

    def read(self, fence: InspectionFence) -> None:
        """Note a fence that was read in the stream."""
        if self._region not in fence.regions:
            return
        self._fences[fence.token] = _Fence(self._clock.monotonic(), frozenset(fence.batches))
        while len(self._fences) > MAX_FENCES:
            self._fences.popitem(last=False)
        self._on_fence()

    def answers(self, held: Iterable[tuple[UUID, BatchRef]]) -> tuple[FenceReading, ...]:
        """The answer to every fence that can still be answered; ``held`` is what is here now."""
        self._prune()
        here = list(held)
        return tuple(
            FenceReading(token=token, executions=self._of(fence.batches, here)) for token, fence in self._fences.items()
        )

    def _of(self, batches: frozenset[BatchRef], here: list[tuple[UUID, BatchRef]]) -> tuple[UUID, ...]:
        found = dict.fromkeys(execution_id for execution_id, batch in here if batch in batches)
        found |= dict.fromkeys(left.execution_id for left in self._left if left.batch in batches)
        return tuple(found)

    def _prune(self) -> None:
        now_s = self._clock.monotonic()
        while self._left and self._left[0].at_s < now_s - REMEMBER_S - ANSWER_S:
            self._forget_oldest()
        self._fences = OrderedDict(
            (token, fence)
            for token, fence in self._fences.items()
            if now_s - fence.read_s <= ANSWER_S and fence.read_s - REMEMBER_S >= self._complete_since_s
        )

    def _forget_oldest(self) -> None:
        self._complete_since_s = self._left.popleft().at_s
