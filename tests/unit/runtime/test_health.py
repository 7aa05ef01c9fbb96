"""Readiness is judged in time, whatever a probe does."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from parallax.errors import UnavailableError
from parallax.health import FORGOTTEN_S, STALLED_S, Health, Refusals
from tests.fakes.clock import LeapingClock


def answering(answer: bool) -> Callable[[], Awaitable[bool]]:
    async def probe() -> bool:
        return answer

    return probe


async def raising() -> bool:
    raise UnavailableError("away")


class Silent:
    """A server that says nothing, asked by a driver that waits for it once more when it is cancelled."""

    def __init__(self) -> None:
        self.asked = 0
        self.speaks = asyncio.Event()

    async def __call__(self) -> bool:
        self.asked += 1
        try:
            await self.speaks.wait()
        except asyncio.CancelledError:
            await asyncio.wait_for(self.speaks.wait(), 30)
        return True


async def test_every_probe_answers_for_itself() -> None:
    health = Health({"up": answering(True), "down": answering(False), "away": raising})
    assert await health.check() == {"up": True, "down": False, "away": False}
    assert await Health().check() == {}


async def test_a_silent_probe_counts_as_no_in_time_and_keeps_nobody_waiting() -> None:
    silent = Silent()
    health = Health({"silent": silent, "up": answering(True)}, limit_s=0.05)
    async with asyncio.timeout(20):
        assert await health.check() == {"silent": False, "up": True}
        assert await health.check() == {"silent": False, "up": True}
    assert silent.asked == 1, "the question is still open, and is not asked twice"
    silent.speaks.set()
    assert await health.check() == {"silent": True, "up": True}


async def test_whoever_asks_meanwhile_waits_no_longer() -> None:
    silent = Silent()
    health = Health({"silent": silent}, limit_s=0.05)
    async with asyncio.timeout(20):
        answers = await asyncio.gather(*(health.check() for _ in range(10)))
    assert answers == [{"silent": False}] * 10
    silent.speaks.set()
    await health.check()


def test_advisory_probes_are_no_reason_to_restart() -> None:
    health = Health({"database": raising, "ledger": raising}, advisory=frozenset({"ledger"}))
    assert health.lost({"database": True, "ledger": False}) == []
    assert health.lost({"database": False, "ledger": False}) == ["database"]


class Server:
    """Refuses as long as it is told to."""

    def __init__(self) -> None:
        self.refusing = True

    async def handle(self) -> None:
        if self.refusing:
            raise UnavailableError("read-only")


async def test_refusals_count_from_the_first_to_the_last_try() -> None:
    clock, server = LeapingClock(), Server()
    refusals = Refusals(clock)
    handler = refusals.watch(server.handle)
    assert await refusals.none()
    for _ in range(2):
        with pytest.raises(UnavailableError):
            await handler()
        assert await refusals.none()
        clock.leap(0.75 * STALLED_S)
    with pytest.raises(UnavailableError):
        await handler()
    assert not await refusals.none()
    server.refusing = False
    await handler()
    assert await refusals.none()


async def test_a_message_that_somebody_else_took_is_forgotten() -> None:
    clock, server = LeapingClock(), Server()
    refusals = Refusals(clock)
    handler = refusals.watch(server.handle)
    for _ in range(3):
        with pytest.raises(UnavailableError):
            await handler()
        clock.leap(STALLED_S / 2)
    assert not await refusals.none()
    clock.leap(FORGOTTEN_S)
    assert await refusals.none()
    with pytest.raises(UnavailableError):
        await handler()
    assert await refusals.none(), "a new trouble begins to count anew"
