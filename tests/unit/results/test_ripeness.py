"""A flush begins when a batch is complete, or when its facts have waited long enough."""

import asyncio
from uuid import uuid4

from results import ripeness
from results.facts import BatchKey, BatchSize, Fact, Opening
from results.ripeness import Ripeness


def fact(job: str, expected: int = 3) -> Fact:
    return Fact(uuid4(), BatchSize(BatchKey(job, "all", 0), "q0", expected, planned=False), True, "{}")


def opening(job: str) -> Opening:
    return Opening(BatchSize(BatchKey(job, "all", 0), "q0", 3, planned=True), "{}")


async def seconds_until_ripe(*news: Fact | Opening) -> float:
    """Seconds of the event loop's clock from the arrival of the last of these until a flush is worth it."""
    found = Ripeness()
    for each in news:
        found.take(each)
    began = asyncio.get_running_loop().time()
    async with asyncio.timeout(30):
        await found.wait()
    return asyncio.get_running_loop().time() - began


def is_ripe(found: Ripeness) -> bool:
    return found._ripe.is_set()


async def test_the_fact_that_completes_a_batch_is_ripe_at_once_and_takes_the_others_along() -> None:
    found = Ripeness()
    for each in (opening("a"), fact("a"), fact("b"), fact("a")):
        found.take(each)
        assert not is_ripe(found)
    found.take(fact("a"))
    assert is_ripe(found)


async def test_counting_begins_anew_with_a_complete_batch() -> None:
    found = Ripeness()
    for _ in range(3):
        found.take(fact("a"))
    await found.wait()
    found.take(fact("a"))
    assert not is_ripe(found)


async def test_a_fact_waits_for_a_bounded_time() -> None:
    assert await seconds_until_ripe(fact("a")) >= 0.9 * ripeness.FACT_WAITS_S


async def test_an_opening_waits_longer_but_not_when_a_fact_comes() -> None:
    alone = await seconds_until_ripe(opening("a"))
    assert alone >= 0.9 * ripeness.OPENING_WAITS_S
    found = Ripeness()
    found.take(opening("a"))
    found.take(fact("a"))
    assert found._timer is not None
    assert found._timer.when() - asyncio.get_running_loop().time() <= ripeness.FACT_WAITS_S


async def test_a_flush_ends_the_waiting_of_all() -> None:
    found = Ripeness()
    found.take(fact("a"))
    found.now()
    await found.wait()
    assert found._timer is None
    assert not is_ripe(found)


async def test_what_is_counted_is_bounded() -> None:
    found = Ripeness()
    for number in range(ripeness.BATCHES_KEPT + 5):
        found.take(fact(f"job-{number}"))
    assert len(found._counts) == ripeness.BATCHES_KEPT
