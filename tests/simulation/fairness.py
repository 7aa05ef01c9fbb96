"""A model that refuses calls for long stretches, and the promise that the other one does not suffer from it."""

import re
from collections.abc import Iterable, Iterator
from random import Random
from typing import Final
from uuid import UUID

from parallax.bus.memory import MemoryBroker
from tests.simulation.nodes import ViolationError
from tests.simulation.workload import HEALTHY, REGIONS

STARVED_AFTER_S: Final = 30.0
"""Time passes in the calm phase only when no message and no answer is left to be delivered, so that a healthy model's
task is called in no time. A task that backs off after a failure of the storm waits in place for at most 5 s."""
_HEALTHY: Final = f'"model":"{HEALTHY}"'.encode()
_ID: Final = re.compile(rb'"execution_id":"([0-9a-f-]{36})"')


class Throttling:
    """When the throttled model refuses every call: most of the time, in stretches as long as the seed says."""

    def __init__(self, random: Random) -> None:
        self._period_s = random.choice((20.0, 100.0, 400.0))
        self._phase_s = random.uniform(0.0, self._period_s)

    def refuses(self, now: float) -> bool:
        """Whether calls are refused now."""
        return (now + self._phase_s) % self._period_s < 0.8 * self._period_s


class Starvation:
    """Watches how long tasks of the healthy model wait for their call when no fault disturbs."""

    def __init__(self) -> None:
        self._since: dict[UUID, float] = {}
        self._looked_at = -1.0

    def check(self, broker: MemoryBroker, now: float, *, called: set[UUID], stopped: set[str]) -> None:
        """Look at every region's queue, and at what executors took from it and do not call.

        Nobody can promise anything for the regions of executors that are ``stopped``.

        Raises:
            ViolationError: A task has waited for too long.
        """
        if now == self._looked_at:
            return
        self._looked_at = now
        waiting = _waiting(broker, [region for region in REGIONS if region not in stopped])
        self._since = {each: self._since.get(each, now) for each in waiting if each not in called}
        starved = [each for each, since in self._since.items() if now - since > STARVED_AFTER_S]
        if starved:
            raise ViolationError(f"{len(starved)} executions of a healthy model wait for their call: {starved[0]}")


def _waiting(broker: MemoryBroker, regions: Iterable[str]) -> Iterator[UUID]:
    for region in regions:
        queue = broker._queues[f"executions.{region}"]
        taken = (stored for consumer in queue.consumers for _, stored in consumer._unsettled.values())
        for stored in (*queue.ready, *taken):
            if _HEALTHY in stored.body and (found := _ID.search(stored.body)) is not None:
                yield UUID(found.group(1).decode())
