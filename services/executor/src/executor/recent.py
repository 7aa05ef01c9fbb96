"""Facts published a moment ago: a task that is delivered again is answered from here instead of being run again."""

from collections import OrderedDict
from typing import Final
from uuid import UUID

from parallax.contracts.messages import ExecutionFinished

MAX_CHARS: Final = 16_000_000
"""Text held at most, whatever the number of facts: long prompts must not make an executor grow."""


class RecentFacts:
    """The last facts, bounded in number and in size; the oldest go first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._facts: OrderedDict[UUID, tuple[ExecutionFinished, int]] = OrderedDict()
        self._chars = 0

    def add(self, fact: ExecutionFinished) -> None:
        """Remember a fact."""
        self._forget(fact.execution_id)
        chars = sum(len(message.content) for message in fact.messages) + (len(fact.output.text) if fact.output else 0)
        self._facts[fact.execution_id] = (fact, chars)
        self._chars += chars
        while len(self._facts) > self._most or (self._chars > MAX_CHARS and len(self._facts) > 1):
            self._forget(next(iter(self._facts)))

    def get(self, execution_id: UUID) -> ExecutionFinished | None:
        """The fact, if it is still remembered."""
        held = self._facts.get(execution_id)
        return held[0] if held else None

    def __len__(self) -> int:
        return len(self._facts)

    def _forget(self, execution_id: UUID) -> None:
        held = self._facts.pop(execution_id, None)
        if held is not None:
            self._chars -= held[1]
