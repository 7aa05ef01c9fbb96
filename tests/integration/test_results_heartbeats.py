"""The last heartbeat of each executor."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.contracts.heartbeat import ExecutorHeartbeat
from parallax.errors import PoisonError
from results.heartbeats import FORGET_S, beat
from tests.harness.results import results_engine, row, rows

NOW = datetime(2026, 11, 23, 13, 0, tzinfo=UTC)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with results_engine(database_url) as engine:
        yield engine


def heartbeat(executor_id: str = "us-1", *, sent_at: datetime = NOW, budget: int = 10) -> ExecutorHeartbeat:
    return ExecutorHeartbeat(
        executor_id=executor_id,
        region="us",
        budget=budget,
        running=(),
        models=("smollm2-135m",),
        endpoint_state="ready",
        last_error='429 from "provider"',
        started_at=NOW,
        sent_at=sent_at,
    )


async def test_the_newest_heartbeat_is_kept_and_an_older_one_changes_nothing(engine: AsyncEngine) -> None:
    await beat(engine, heartbeat(budget=1), NOW)
    await beat(engine, heartbeat(budget=2, sent_at=NOW + timedelta(seconds=5)), NOW + timedelta(seconds=5))
    await beat(engine, heartbeat(budget=3, sent_at=NOW + timedelta(seconds=4)), NOW + timedelta(seconds=6))

    stored = await row(engine, "SELECT budget, received_at, models, last_error FROM results.executors")
    assert stored == {
        "budget": 2,
        "received_at": NOW + timedelta(seconds=5),
        "models": ["smollm2-135m"],
        "last_error": '429 from "provider"',
    }


async def test_a_gap_between_heartbeats_is_remembered(engine: AsyncEngine) -> None:
    """Whoever was not heard of for a while cannot tell who else was silent meanwhile."""
    steady = "SELECT steady_since FROM results.executors"
    for seconds, since in ((0, 0), (5, 0), (30, 0), (70, 70), (75, 70)):
        moment = NOW + timedelta(seconds=seconds)
        await beat(engine, heartbeat(sent_at=moment), moment)
        assert await row(engine, steady) == {"steady_since": NOW + timedelta(seconds=since)}
    moment = NOW + timedelta(seconds=80)
    again = heartbeat(sent_at=moment).model_copy(update={"started_at": moment})
    await beat(engine, again, moment)
    assert await row(engine, steady) == {"steady_since": moment}, "another process of the same name"


async def test_executors_that_are_long_gone_are_forgotten(engine: AsyncEngine) -> None:
    await beat(engine, heartbeat("gone"), NOW)
    await beat(engine, heartbeat("quiet"), NOW + timedelta(seconds=2))
    await beat(engine, heartbeat("here"), NOW + timedelta(seconds=FORGET_S + 1))

    kept = await rows(engine, "SELECT executor_id FROM results.executors ORDER BY executor_id")
    assert [each["executor_id"] for each in kept] == ["here", "quiet"]


async def test_a_number_out_of_range_is_poison(engine: AsyncEngine) -> None:
    with pytest.raises(PoisonError):
        await beat(engine, heartbeat(budget=2**40), NOW)
