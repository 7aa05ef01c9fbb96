"""Clocks that do not wait: pauses that take no time, or hardly any, and one that stands still until it is turned."""

import asyncio
from datetime import UTC, datetime, timedelta


class LeapingClock:
    """Every sleep moves the time forward at once and lets other tasks run."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self.pauses: list[float] = []

    def now(self) -> datetime:
        """The moment."""
        return datetime(2026, 11, 23, tzinfo=UTC) + timedelta(seconds=self._now_s)

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._now_s

    def leap(self, seconds: float) -> None:
        """Let time pass."""
        self._now_s += seconds

    async def sleep(self, seconds: float) -> None:
        """Note the pause and leap over it."""
        self.pauses.append(seconds)
        self.leap(seconds)
        await asyncio.sleep(0)


class FastClock:
    """Sleeping takes a moment, but the clock moves by the whole pause; ``now`` is the machine's."""

    def __init__(self) -> None:
        self.elapsed_s = 0.0

    def now(self) -> datetime:
        """The moment."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds slept so far."""
        return self.elapsed_s

    async def sleep(self, seconds: float) -> None:
        """Move the clock."""
        self.elapsed_s += seconds
        await asyncio.sleep(0.001)


class ManualClock:
    """A clock that stands still until it is turned."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 1, tzinfo=UTC)
        self._elapsed_s = 0.0
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def now(self) -> datetime:
        """The moment."""
        return self._now

    def monotonic(self) -> float:
        """Seconds since the start."""
        return self._elapsed_s

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock was turned far enough."""
        woken = asyncio.Event()
        self._sleepers.append((self._elapsed_s + seconds, woken))
        await woken.wait()

    def advance(self, seconds: float) -> None:
        """Turn the clock."""
        self._now += timedelta(seconds=seconds)
        self._elapsed_s += seconds
        for until, woken in self._sleepers:
            if until <= self._elapsed_s:
                woken.set()
        self._sleepers = [(until, woken) for until, woken in self._sleepers if not woken.is_set()]
