"""Which faults strike, drawn from the seed."""

from collections import Counter
from enum import StrEnum
from random import Random


class Fault(StrEnum):
    """What may go wrong at a side effect, or between two."""

    CRASH_BEFORE = "crash before"
    CRASH_BETWEEN = "crash between publishes"
    CRASH_AFTER = "crash after"
    REFUSED = "refused"
    """The operation fails and had no effect."""
    ANSWER_LOST = "answer lost"
    """The operation had its effect, and fails all the same."""
    STALE = "channel closed"
    """The channel is lost: unsettled deliveries go back, their handles are stale."""
    DUPLICATE = "duplicate"
    REORDER = "reorder"
    PURGE = "queue purged"
    CONNECTIONS_LOST = "connections lost"
    KILL = "kill"
    STOP = "stopped in order"
    CLOCK_JUMP = "clock jump"
    SLOW = "slow publish"
    """The broker takes seconds for what is published."""
    FROZEN = "stopped for a while"
    """As by SIGSTOP: the process does nothing, and goes on later as if nothing had been."""


AT_POINT: dict[str, tuple[Fault, ...]] = {
    "publish": (
        Fault.CRASH_BEFORE,
        Fault.CRASH_BETWEEN,
        Fault.CRASH_AFTER,
        Fault.REFUSED,
        Fault.ANSWER_LOST,
        Fault.SLOW,
    ),
    "begin": (Fault.REFUSED,),
    "commit": (Fault.CRASH_BEFORE, Fault.REFUSED),
    "committed": (Fault.CRASH_AFTER, Fault.ANSWER_LOST),
    "ack": (Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.STALE),
    "requeue": (Fault.CRASH_BEFORE,),
    "reject": (Fault.CRASH_BEFORE, Fault.CRASH_AFTER),
    "depth": (Fault.REFUSED,),
}
"""The faults that make sense at each kind of side effect."""
BROKER_NOTICES_S = 45.0
"""After so long without a sign of life the broker drops the connections of a process."""


class Faults:
    """Draws faults while the storm lasts, and counts them."""

    def __init__(self, random: Random, *, rate: float, most: int) -> None:
        self._random = random
        self._rate = rate
        self._most = most
        self.calm = False
        self.struck: Counter[Fault] = Counter()

    def at(self, point: str) -> Fault | None:
        """The fault that strikes at a side effect, if one does."""
        if self.calm or self.struck.total() >= self._most or self._random.random() >= self._rate:
            return None
        return self.strike(self._random.choice(AT_POINT[point]))

    def strike(self, fault: Fault) -> Fault:
        """Count a fault that strikes now."""
        self.struck[fault] += 1
        return fault
