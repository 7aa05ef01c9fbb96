"""Whoever follows a job misses none of its events and gets none twice; exports hold every row."""

import asyncio
import csv
import gc
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import httpx
import pytest
from httpx_sse import EventSource
from sqlalchemy.event import listen
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.clock import SystemClock
from parallax.contracts.heartbeat import ExecutorHeartbeat, RunningExecution
from parallax.contracts.messages import JobRejected, Problem
from parallax.contracts.outcomes import Reason
from results import heartbeats
from results.api.moments import Moments
from results.api.problems import ApiError, Kind
from results.api.settings import ApiSettings
from results.api.streams import Streams
from tests.fakes import facts
from tests.fakes.clock import LeapingClock
from tests.integration.api_stage import Stage, job_document, staged

PATIENCE_S = 30.0


@pytest.fixture
async def stage(database_url: str) -> AsyncIterator[Stage]:
    async with staged(database_url) as running:
        yield running


@dataclass(frozen=True)
class Told:
    """One event of a stream."""

    number: str | None
    kind: str
    data: dict[str, Any]


async def told(response: httpx.Response) -> list[Told]:
    assert response.headers["content-type"].startswith("text/event-stream")
    events, last = [], ""
    async for event in EventSource(response).aiter_sse():
        if not event.data:
            continue  # the block that says how soon to reconnect
        number = event.id if event.id != last else None
        last = event.id
        events.append(Told(number, event.event, event.json()))
    return events


async def test_a_job_is_replayed_to_its_end(stage: Stage) -> None:
    await stage.complete_job("job-1", 2)
    events = await told(await stage.http.get("/v1/jobs/job-1/events"))
    numbered = [event for event in events if event.number is not None]
    assert [event.number for event in numbered] == [str(n + 1) for n in range(len(numbered))]
    assert [event.kind for event in numbered] == [
        "job.accepted", "job.started", "batch.opened", "batch.completed", "batch.opened", "batch.completed",
        "job.finished",
    ]  # fmt: skip
    assert [event.kind for event in events[-2:]] == ["progress", "done"]
    assert events[-1].data == {
        "status": "completed",
        "executions": 12,
        "counts": {"completed": 12, "failed": 0, "timed_out": 0, "cancelled": 0},
    }


@pytest.mark.parametrize(("last", "first"), [("3", "4"), ("6", "7"), ("7", None), ("900", None)])
async def test_a_follower_reads_on_behind_its_last_event(stage: Stage, last: str, first: str | None) -> None:
    await stage.complete_job("job-1", 2)
    events = await told(await stage.http.get("/v1/jobs/job-1/events", headers={"Last-Event-ID": last}))
    assert next((event.number for event in events if event.number), None) == first
    assert events[-1].kind == "done"


async def test_news_reach_a_follower_in_order_while_writers_race(stage: Stage) -> None:
    spec = await stage.accept("job-1", job_document(12))
    streams = Streams(stage.engine, SystemClock(), ApiSettings(stream_poll_s=0.001))
    seen: list[int] = []
    done = asyncio.Event()

    async def follow() -> None:
        async for part in streams.follow("job-1", 0):
            seen.extend(int(line[4:]) for line in part.decode().splitlines() if line.startswith("id: "))
            if b"event: done" in part:
                done.set()

    async def one_batch(index: int) -> None:
        await stage.store(facts.every(await stage.open("job-1", spec, index)))

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(follow())
        async with asyncio.TaskGroup() as writers:
            for index in range(12):
                writers.create_task(one_batch(index))
        await stage.finish("job-1")
        await done.wait()
    assert seen == list(range(1, 2 + 2 * 12 + 1 + 1))


async def test_a_rejected_job_is_over(stage: Stage) -> None:
    await stage.tell(
        JobRejected(
            job_id="job-1",
            reason=Reason(code="invalid", message="breaks rules"),
            problems=(Problem(pointer="/regions/0", message="unknown region 'mars'"),),
            rejected_at=facts.START,
        )
    )
    events = await told(await stage.http.get("/v1/jobs/job-1/events"))
    assert [event.kind for event in events] == ["job.rejected", "progress", "done"]
    job = (await stage.http.get("/v1/jobs/job-1")).json()
    assert (job["status"], job["reason"]["code"], job["problems"][0]["pointer"]) == (
        "rejected",
        "invalid",
        "/regions/0",
    )


async def test_streams_are_bounded_and_give_their_place_back(stage: Stage) -> None:
    await stage.accept("job-1")
    streams = Streams(stage.engine, SystemClock(), ApiSettings(max_streams=1, stream_poll_s=0.001))
    first = streams.follow("job-1", 0)
    await anext(first)
    with pytest.raises(ApiError) as caught:
        streams.follow("job-1", 0)
    assert caught.value.kind is Kind.TOO_MANY_STREAMS
    await first.aclose()  # type: ignore[attr-defined] # an asynchronous generator
    await anext(streams.follow("job-1", 0))


async def test_a_burst_of_followers_does_not_pass_the_limit(stage: Stage) -> None:
    streams = Streams(stage.engine, SystemClock(), ApiSettings(max_streams=3))
    begun = [streams.follow("job-1", 0) for _ in range(3)]  # admitted, and not yet read
    with pytest.raises(ApiError):
        streams.follow("job-1", 0)
    begun.pop()  # its client left before the answer began
    gc.collect()
    assert streams.open == 2
    streams.follow("job-1", 0)


class Sums:
    """Counts how often the progress of a job is summed, and makes it take as long as a clock says."""

    def __init__(self, engine: AsyncEngine, clock: LeapingClock, takes_s: float = 0.0) -> None:
        self.count = 0
        self._clock = clock
        self._takes_s = takes_s
        listen(engine.sync_engine, "before_cursor_execute", self._before)

    def _before(self, _connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "sum(completed)" in statement:
            self.count += 1
            self._clock.leap(self._takes_s)


async def test_followers_of_one_job_share_what_its_progress_costs(stage: Stage) -> None:
    spec = await stage.accept("job-1")
    batch = await stage.open("job-1", spec, 0)
    clock = LeapingClock()
    sums, moments = Sums(stage.engine, clock), Moments(stage.engine, clock, fresh_s=0.25)
    first = await asyncio.gather(*(moments.of("job-1") for _ in range(200)))
    assert sums.count == 1
    await stage.store([facts.observed(batch, batch.cells[0])])
    assert [await moments.of("job-1")] == first[:1]
    clock.leap(0.3)
    second = await asyncio.gather(*(moments.of("job-1") for _ in range(200)))
    assert sums.count == 2
    assert {moment.progress.counts.completed for moment in second if moment} == {1}
    assert await moments.of("nobody") is None


async def test_what_is_slow_to_sum_is_summed_seldom(stage: Stage) -> None:
    await stage.accept("job-1")
    clock = LeapingClock()
    sums, moments = Sums(stage.engine, clock, takes_s=0.1), Moments(stage.engine, clock, fresh_s=0.25)
    for _ in range(9):
        await moments.of("job-1")
        clock.leap(0.1)
    assert sums.count == 1
    clock.leap(0.2)
    await moments.of("job-1")
    assert sums.count == 2


async def test_a_follower_that_leaves_takes_nothing_from_the_others(stage: Stage) -> None:
    await stage.accept("job-1")
    moments = Moments(stage.engine, SystemClock(), fresh_s=0.25)
    leaving, staying = (asyncio.create_task(moments.of("job-1")) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    async with asyncio.timeout(PATIENCE_S):
        assert await staying is not None


async def test_a_quiet_job_is_looked_at_less_often_until_something_happens(stage: Stage) -> None:
    spec = await stage.accept("job-1")
    batch = await stage.open("job-1", spec, 0)
    clock = LeapingClock()
    parts = Streams(stage.engine, clock, ApiSettings(stream_poll_s=0.5, stream_ping_s=60)).follow("job-1", 0)
    async with asyncio.timeout(PATIENCE_S):
        while b"still here" not in await anext(parts):
            pass
        assert clock.pauses[0] == 0.5
        assert clock.pauses == sorted(clock.pauses)
        assert clock.pauses[-1] == 2.0
        assert 60 <= sum(clock.pauses) < 62
        await stage.store([facts.observed(batch, batch.cells[0])])
        while b"event: progress" not in await anext(parts):
            pass
        clock.pauses.clear()
        await anext(parts)
        assert clock.pauses[0] == 0.5


async def test_a_silent_stream_says_that_it_lives(stage: Stage) -> None:
    await stage.accept("job-1")
    streams = Streams(stage.engine, SystemClock(), ApiSettings(stream_ping_s=0.002, stream_poll_s=0.001))
    async with asyncio.timeout(PATIENCE_S):
        async for part in streams.follow("job-1", 0):
            if part.startswith(b": still here"):
                break


async def test_streams_and_files_refuse_what_they_cannot_be(stage: Stage) -> None:
    await stage.complete_job("job-1", 1)
    assert (await stage.http.get("/v1/jobs/job-1/events", headers={"Accept": "application/json"})).status_code == 406
    assert (await stage.http.get("/v1/jobs/job-1/events", headers={"Last-Event-ID": "x"})).status_code == 422
    assert (await stage.http.get("/v1/jobs/nobody/events")).status_code == 404
    assert (await stage.http.get("/v1/jobs/job-1/export?format=xlsx")).status_code == 422
    parquet = await stage.http.get("/v1/jobs/job-1/export?format=parquet")
    assert parquet.status_code == (200 if find_spec("pyarrow") else 406)


HOSTILE = '=HYPERLINK("http://evil")\n"quoted", <b>bold</b> \x1b[31m \u202e \U0001f600'


async def test_exports_hold_every_row_in_order(stage: Stage) -> None:
    await stage.complete_job("job-1", 50, text=HOSTILE)
    as_json = await stage.http.get("/v1/jobs/job-1/export", params={"format": "jsonl"})
    assert as_json.headers["content-disposition"] == 'attachment; filename="job-1.jsonl"'
    documents = [json.loads(line) for line in as_json.text.split("\n")[:-1]]
    places = [(d["question_index"], d["model_id"], d["region"], d["sample"]) for d in documents]
    assert len(places) == 300
    assert places == sorted(set(places))
    assert documents[0]["output"] == {"text": HOSTILE, "refusal": None}
    assert documents[0]["receipt"]["provider"] == "local"
    as_csv = await stage.http.get("/v1/jobs/job-1/export", params={"format": "csv", "region": ["eu", "us"]})
    lines = list(csv.DictReader(io.StringIO(as_csv.text, newline="")))
    assert len(lines) == 200
    assert lines[0]["output"] == "'" + HOSTILE
    assert lines[0]["question"] == "What is the most important invention in history?"
    assert {line["region"] for line in lines} == {"eu", "us"}


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is optional, and not installed here")
async def test_parquet_is_one_file_with_a_row_group_per_page(stage: Stage) -> None:
    from pyarrow import parquet

    await stage.complete_job("job-1", 60, text=HOSTILE)
    response = await stage.http.get("/v1/jobs/job-1/export", params={"format": "parquet"})
    table = parquet.read_table(io.BytesIO(response.content))
    assert table.num_rows == 360
    assert set(table.column("output").to_pylist()) == {HOSTILE}
    assert table.column("question_index").to_pylist() == sorted(table.column("question_index").to_pylist())
    assert table.column("completed_at").to_pylist()[0] == facts.START + timedelta(seconds=1.5)


async def test_regions_tell_who_is_alive_and_what_waits(stage: Stage) -> None:
    now = SystemClock().now()
    spec = await stage.accept("job-1")
    batch = await stage.open("job-1", spec, 0)
    fact = facts.observed(batch, batch.cells[0])
    held = RunningExecution(
        execution_id=fact.execution_id, job_id="job-1", question_id="question-0", model_id="model-0", since=now
    )
    waits = held.model_copy(
        update={"execution_id": facts.observed(batch, batch.cells[1]).execution_id, "calling": False}
    )
    beat = ExecutorHeartbeat(
        executor_id="us-1", region="us", budget=10, running=(held, waits), models=("smollm2-135m",),
        endpoint_state="ready", last_error="HTTP 503", started_at=now, sent_at=now,
    )  # fmt: skip
    await heartbeats.beat(stage.engine, beat, now)
    gone = beat.model_copy(update={"executor_id": "us-2", "stopping": True})
    await heartbeats.beat(stage.engine, gone, now)
    regions = {region["id"]: region for region in (await stage.http.get("/v1/regions")).json()["regions"]}
    us = regions["us"]
    assert [executor["id"] for executor in us["executors"]] == ["us-1"]
    assert (us["budget"], us["in_flight"], us["queue_depth"], us["last_error"]) == (10, 1, 0, "HTTP 503")
    assert (regions["apac"]["simulated"], regions["apac"]["executors"]) == (True, [])
    running = (await stage.http.get("/v1/jobs/job-1")).json()["running"]
    assert {(r["executor_id"], r["execution_id"]) for r in running} == {
        ("us-1", str(each.execution_id)) for each in (held, waits)
    }
    await stage.bus.close()
    assert (await stage.http.get("/v1/regions")).json()["regions"][0]["queue_depth"] is None


async def test_the_catalog_tells_no_addresses(stage: Stage) -> None:
    answer = await stage.http.get("/v1/catalog")
    assert [model["id"] for model in answer.json()["models"]] == ["smollm2-135m"]
    assert "modal://" not in answer.text
