"""When what has arrived is worth a flush.

The fact that completes a batch is awaited by the dispatcher: it is ripe at once, and takes along everything that
waits. Nobody waits for the facts before it, nor for the opening: written one by one as they come, they would cost as
many transactions, and the last one would have to wait for the one before it.
"""

import asyncio
from typing import Final

from results.facts import BatchKey, Fact, Opening

FACT_WAITS_S: Final = 0.02
"""Longest time a fact waits for others of its batch: its last fact may be with another replica."""
OPENING_WAITS_S: Final = 0.05
BATCHES_KEPT: Final = 10_000
"""Batches of which facts were counted and are missing. Forgetting one costs its last fact ``FACT_WAITS_S``."""


class Ripeness:
    """Counts the facts that come by."""

    def __init__(self) -> None:
        self._ripe = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._counts: dict[BatchKey, int] = {}

    def take(self, news: Fact | Opening) -> None:
        """Something arrived that can wait, unless it completes a batch."""
        if isinstance(news, Opening):
            self._within(OPENING_WAITS_S)
        elif self._completes(news):
            self.now()
        else:
            self._within(FACT_WAITS_S)

    def now(self) -> None:
        """Let what has arrived be written at once."""
        self._ripe.set()

    async def wait(self) -> None:
        """Wait until a flush is worth it."""
        await self._ripe.wait()
        self._ripe.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _completes(self, fact: Fact) -> bool:
        count = self._counts.pop(fact.size.key, 0) + 1
        if count >= fact.size.expected:
            return True
        self._counts[fact.size.key] = count
        if len(self._counts) > BATCHES_KEPT:
            del self._counts[next(iter(self._counts))]
        return False

    def _within(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if self._timer is None or due < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(due, self._ripe.set)
