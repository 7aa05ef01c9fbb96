"""An event loop whose time stands still until the simulation moves it."""

import asyncio
import heapq
from contextvars import Context
from datetime import UTC, datetime, timedelta
from typing import Any

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class _Timer(asyncio.TimerHandle):
    """A timer that is due in the order of its making among those due at the same moment: in virtual time many are,
    and a heap alone would let the number of other timers decide."""

    number = 0

    def __lt__(self, other: object) -> bool:
        assert isinstance(other, _Timer)
        return (self.when(), self.number) < (other.when(), other.number)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Real sockets, virtual timers."""

    def __init__(self) -> None:
        super().__init__()
        self._moment = 0.0
        self._timers = 0

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See ``AbstractEventLoop.call_at``."""
        timer = _Timer(when, callback, args, self, context)
        self._timers += 1
        timer.number = self._timers
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def time(self) -> float:
        """Seconds since the simulation began."""
        return self._moment

    @property
    def quiet(self) -> bool:
        """Whether no callback but the asking one is ready to run."""
        return not self._ready  # type: ignore[attr-defined]

    def next_timer(self) -> float | None:
        """When the earliest timer is due."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return min((handle.when() for handle in scheduled if not handle.cancelled()), default=None)

    def advance_to(self, moment: float) -> None:
        """Let time pass; timers that became due run next."""
        self._moment = max(self._moment, moment)


class SimClock:
    """The clock port on virtual time; the wall clock can be made to jump, the monotonic one cannot."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.jumped_s = 0.0

    def now(self) -> datetime:
        """The moment, in UTC."""
        return EPOCH + timedelta(seconds=self._loop.time() + self.jumped_s)

    def monotonic(self) -> float:
        """Seconds since the simulation began."""
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        """Wait for virtual time to pass."""
        await asyncio.sleep(seconds)
