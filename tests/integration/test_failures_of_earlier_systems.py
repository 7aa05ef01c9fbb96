"""What went wrong in earlier systems, from the submission to the ledger; ``docs/failures.md`` lists all of it."""

import asyncio
from collections import Counter

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from parallax.bus.memory import MemoryBus
from parallax.bus.port import Delivery
from parallax.contracts.messages import JobAccepted, JobRejected
from parallax.contracts.routing import executions
from parallax_cli.mock_script import Step
from tests.fakes.endpoint import FakeEndpoint
from tests.integration.whole_stage import REGIONS, endpoints, job, whole


async def test_a_job_of_72_executions_has_72_rows_however_often_its_messages_come(database_url: str) -> None:
    """Failure seen: duplicate rows; 100 executions instead of 72."""
    document = job(questions=4, samples=2)
    served = {region: FakeEndpoint((Step(delay_s=0.02),)) for region in REGIONS}
    async with whole(database_url, served) as stage:
        first = await stage.submit("seventy-two", document)
        assert isinstance(first, JobAccepted)
        assert first.executions == 72
        for calls, endpoint in zip((1, 9, 17), served.values(), strict=True):
            await endpoint.until_calls(calls)
            stage.broker.drop_connections()
        assert await stage.submit("seventy-two", document) == first
        end = await stage.finished("seventy-two")
        stored = await stage.executions("seventy-two")
    cells = {(row["question_id"], row["model_id"], row["region"], row["sample"]) for row in stored}
    assert len(stored) == len(cells) == 72
    assert end["counts"] == {"completed": 72, "failed": 0, "timed_out": 0, "cancelled": 0}


@pytest.mark.parametrize(
    ("twice", "place"),
    [
        ({"regions": ["us", "eu", "us"]}, "/job/regions/2"),
        ({"models": [{"id": "one"}, {"id": "one"}]}, "/job/models/1/id"),
        ({"questions": [{"id": "q", "text": "Why?"}, {"id": "q", "text": "How?"}]}, "/job/questions/1/id"),
    ],
    ids=["regions", "models", "questions"],
)
async def test_what_is_listed_twice_is_refused(database_url: str, twice: dict[str, object], place: str) -> None:
    """Failure seen: duplicate rows; 100 executions instead of 72."""
    async with whole(database_url, executors=False) as stage:
        answer = await stage.submit("twice", job() | twice)
    assert isinstance(answer, JobRejected)
    assert [problem.pointer for problem in answer.problems] == [place]


async def test_no_other_region_stands_in_for_one_that_fails(database_url: str) -> None:
    """Failure seen: a us-east job ran in eu-west; retries fell over to another region."""
    served = endpoints()
    served["us"] = FakeEndpoint((Step(status=500), Step(status=404)))
    async with whole(database_url, served) as stage:
        await stage.submit("everywhere", job(samples=2))
        end = await stage.finished("everywhere")
        stored = await stage.executions("everywhere")
    assert end["counts"]["failed"] == 6
    assert {(row["region"], row["status"]) for row in stored} == {
        ("us", "failed"), ("eu", "completed"), ("apac", "completed"),
    }  # fmt: skip
    assert {row["receipt"]["region_claimed"] == row["region"] for row in stored} == {True}
    for region, endpoint in served.items():
        called = {call.request.execution_id for call in endpoint.calls}
        assert called == {row["execution_id"] for row in stored if row["region"] == region}


async def test_no_row_lacks_its_question_and_no_job_ends_without_a_reason(database_url: str) -> None:
    """Failure seen: rows with question id null, jobs failed without a reason."""
    served = {region: FakeEndpoint((Step(status=404),)) for region in REGIONS}
    async with whole(database_url, served) as stage:
        await stage.submit("fails", job())
        await stage.submit("refused", job(regions=["mars"]))
        failed = await stage.until_status("fails", "failed")
        refused = await stage.until_status("refused", "rejected")
        stored = await stage.executions("fails")
        with pytest.raises(IntegrityError, match="question_id"):
            async with stage.engine.begin() as connection:
                await connection.execute(text("UPDATE results.executions SET question_id = NULL"))
    assert failed["reason"]["code"] == "below_min_success_rate"
    assert refused["reason"]["code"] == "invalid"
    assert {problem["pointer"] for problem in refused["problems"]} == {"/job/regions/0"}
    assert {(row["question_id"], row["error"]["code"]) for row in stored} == {("q0", "http_404")}


async def test_a_job_that_has_11_of_18_gets_the_other_7(database_url: str) -> None:
    """Failure seen: job stuck at 11 of 18 for ever."""
    async with whole(database_url, executors=False) as stage:
        await stage.submit("eighteen", job(samples=2))
        await _lose(stage.bus, region="us", count=6)
        await _lose(stage.bus, region="eu", count=1)
        await stage.start_executors()
        end = await stage.finished("eighteen")
        stored = await stage.executions("eighteen")
    assert end["counts"]["completed"] == 18
    assert Counter(row["region"] for row in stored) == {"us": 6, "eu": 6, "apac": 6}


async def test_a_job_whose_lost_work_nobody_can_do_ends_by_its_deadline(database_url: str) -> None:
    """Failure seen: job stuck at 11 of 18 for ever."""
    served = endpoints()
    del served["us"]
    async with whole(database_url, served) as stage:
        await stage.submit("deserted", job(samples=2, limits={"batch_deadline_s": 2.0}))
        end = await stage.finished("deserted")
        stored = await stage.executions("deserted")
    assert end["counts"] == {"completed": 12, "failed": 0, "timed_out": 6, "cancelled": 0}
    assert {row["region"] for row in stored if row["status"] == "timed_out"} == {"us"}


async def test_an_empty_answer_and_a_refusal_are_answers_in_the_ledger(database_url: str) -> None:
    """Failure seen: success at the provider, "failed" in the portal because the text was empty."""
    served = {
        "us": FakeEndpoint((Step(text="", finish_reason="length"),)),
        "eu": FakeEndpoint((Step(text="", refusal="I would rather not."),)),
    }
    async with whole(database_url, served) as stage:
        await stage.submit("silent", job(regions=["us", "eu"], models=[{"id": "one"}]))
        end = await stage.finished("silent")
        stored = {row["region"]: row for row in await stage.executions("silent")}
    assert end["status"] == "completed"
    assert (stored["us"]["status"], stored["us"]["finish_reason"], stored["us"]["output_chars"]) == (
        "completed", "length", 0,
    )  # fmt: skip
    assert (stored["eu"]["status"], stored["eu"]["refused"]) == ("completed", True)


async def _lose(bus: MemoryBus, *, region: str, count: int) -> None:
    """Take tasks of a region and let them vanish, as a broker that loses messages would."""
    taken: asyncio.Queue[Delivery] = asyncio.Queue()
    consumption = await bus.consume(executions(region), prefetch=count, handler=taken.put_nowait)
    async with asyncio.timeout(30):
        for delivery in [await taken.get() for _ in range(count)]:
            await delivery.ack()
    await consumption.close()
