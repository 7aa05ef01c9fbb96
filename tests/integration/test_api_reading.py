"""What people read over HTTP is what the ledger and the projection hold."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from parallax.contracts.outcomes import ExecutionStatus
from tests.fakes import facts
from tests.integration.api_stage import Stage, staged


@pytest.fixture
async def stage(database_url: str) -> AsyncIterator[Stage]:
    async with staged(database_url) as running:
        yield running


async def everything(stage: Stage, path: str, **params: object) -> list[dict[str, object]]:
    """Every item of a listing, page by page."""
    items: list[dict[str, object]] = []
    cursor: str | None = None
    while True:
        query = {**params, **({"cursor": cursor} if cursor else {})}
        response = await stage.http.get(path, params=query)  # type: ignore[arg-type] # values of one filter repeat
        assert response.status_code == 200, response.text
        items += response.json().get("items", response.json().get("rows", []))
        cursor = response.json()["next_cursor"]
        if cursor is None:
            return items


async def test_jobs_are_listed_newest_first_in_pages_without_gaps(stage: Stage) -> None:
    for number in range(7):
        moment = facts.START + timedelta(seconds=number // 2)  # pairs share a moment: the id decides
        await stage.accept(f"job-{number}", at=moment)
    listed = await everything(stage, "/v1/jobs", limit=2)
    assert [job["id"] for job in listed] == [f"job-{n}" for n in (6, 5, 4, 3, 2, 1, 0)]


async def test_jobs_are_filtered_by_status_name_metadata_and_time(stage: Stage) -> None:
    document = {"name": "survey", "questions": [{"id": "q", "text": "?"}], "regions": ["us"]}
    document |= {"models": [{"id": "m", "model": "smollm2-135m"}]}
    await stage.accept("old", {**document, "metadata": {"team": "red", "round": 3}})
    await stage.accept("new", {**document, "name": "other"}, at=facts.START + timedelta(hours=1))
    await stage.finish("old")

    async def ids(**params: object) -> list[object]:
        return [job["id"] for job in await everything(stage, "/v1/jobs", limit=1, **params)]

    assert await ids(status="completed") == ["old"]
    assert await ids(status=["running", "completed"]) == ["new", "old"]
    assert await ids(status="rejected") == []
    assert await ids(name="other") == ["new"]
    assert await ids(name="URVE") == ["old"]
    assert await ids(name="%") == []
    assert await ids(metadata="team=red") == ["old"]
    assert await ids(metadata=["team=red", "round=3"]) == ["old"]
    assert await ids(metadata=["team=red", "round=4"]) == []
    assert await ids(created_after=(facts.START + timedelta(minutes=1)).isoformat()) == ["new"]
    assert await ids(created_before=(facts.START + timedelta(minutes=1)).isoformat()) == ["old"]


async def test_a_job_tells_its_progress_tokens_cost_and_timing(stage: Stage) -> None:
    spec = await stage.accept("job-1")
    await stage.store(facts.every(await stage.open("job-1", spec, 0)))
    second = await stage.open("job-1", spec, 1)
    await stage.store([facts.observed(second, second.cells[0])])
    job = (await stage.http.get("/v1/jobs/job-1")).json()
    assert job["status"] == "running"
    assert job["executions"] == 18
    assert job["counts"] == {"completed": 7, "failed": 0, "timed_out": 0, "cancelled": 0}
    (lane,) = job["lanes"]
    assert (lane["lane"], lane["batches_opened"], lane["batches_completed"]) == ("all", 2, 1)
    assert [batch["question_id"] for batch in lane["open"]] == ["question-1"]
    assert job["tokens"] == {"prompt": 7 * 31, "completion": 7 * 64}
    # Seven calls of 1.5 s: three in us, two in apac at one price, two in eu at twice that; ten share a container.
    assert job["cost"] == {
        "amount": pytest.approx((5 + 2 * 2) * 1.5 * 0.001 / 10),
        "currency": "USD",
        "prices_as_of": "2026-11-01",
        "complete": True,
    }
    assert job["timings"]["waited_s"] == 0
    assert job["timings"]["ran_s"] > 0
    assert "questions" not in job["spec"]
    assert job["plan"]["models"][0]["regions"] == ["us", "eu", "apac"]
    batches = await everything(stage, "/v1/jobs/job-1/batches", limit=1)
    assert [(b["question_index"], b["recorded"], b["expected"]) for b in batches] == [(0, 6, 6), (1, 1, 6)]


async def test_a_waiting_job_tells_its_place(stage: Stage) -> None:
    await stage.complete_job("done", 1)
    for number in range(3):
        response = await stage.http.post("/v1/jobs", json=_document(), headers={"Idempotency-Key": f"job-{number}"})
        assert response.status_code == 202
    spec = await stage.accept("job-0")
    assert spec.name == "survey"
    assert (await stage.http.get("/v1/jobs/job-0")).json()["place_in_queue"] is None
    assert (await stage.http.get("/v1/jobs/job-1")).json()["status"] == "submitted"


def _document() -> dict[str, object]:
    return {
        "name": "survey",
        "questions": [{"id": "q", "text": "?"}],
        "models": [{"id": "m", "model": "smollm2-135m"}],
        "regions": ["us"],
    }


async def test_executions_come_in_order_by_keyset_and_by_every_filter(stage: Stage) -> None:
    spec = await stage.accept("job-1")
    for index in range(3):
        batch = await stage.open("job-1", spec, index)
        await stage.store(
            facts.ended(batch, cell, ExecutionStatus.FAILED, seen=True) if cell.region == "eu" and index else fact
            for cell, fact in zip(batch.cells, facts.every(batch), strict=True)
        )
    path = "/v1/jobs/job-1/executions"
    listed = await everything(stage, path, limit=4)
    places = [(e["question_index"], e["model_id"], e["region"], e["sample"]) for e in listed]
    assert len(places) == 18
    assert places == sorted(places)

    async def count(**params: object) -> int:
        return len(await everything(stage, path, limit=2, **params))

    assert await count(status="failed") == 4
    assert await count(status=["failed", "completed"]) == 18
    assert await count(status=["failed", "timed_out"], model="model-1") == 2
    assert await count(question=["question-0", "question-2"]) == 12
    assert await count(question="question-2", region="eu", model="model-0") == 1
    assert await count(region="nowhere") == 0
    failed = (await everything(stage, path, status="failed"))[0]
    assert failed["error"] == {
        "error_class": "deadline", "code": "batch_deadline", "message": "the batch is overdue", "retryable": False,
    }  # fmt: skip
    assert failed["excerpt"] is None


async def test_an_execution_is_told_whole(stage: Stage) -> None:
    spec = await stage.accept("job-1")
    batch = await stage.open("job-1", spec, 0)
    fact = facts.observed(batch, batch.cells[0], text="x" * 2000)
    await stage.store([fact])
    brief = (await stage.http.get("/v1/jobs/job-1/executions")).json()["items"][0]
    assert (len(brief["excerpt"]), brief["output_chars"]) == (500, 2000)
    whole = (await stage.http.get(f"/v1/jobs/job-1/executions/{fact.execution_id}")).json()
    sent = fact.model_dump(mode="json")
    for name in ("messages", "output", "usage", "receipt", "attempts", "provider_id", "finish_reason", "error"):
        assert whole[name] == sent[name], name
    other = await stage.http.get(f"/v1/jobs/job-2/executions/{fact.execution_id}")
    assert other.status_code == 404


async def test_the_matrix_holds_every_cell_of_its_questions(stage: Stage) -> None:
    await stage.complete_job("job-1", 5)
    matrix = (await stage.http.get("/v1/jobs/job-1/matrix", params={"limit": 2})).json()
    assert matrix["models"] == ["model-0", "model-1"]
    assert matrix["regions"] == ["us", "eu", "apac"]
    assert [row["question_id"] for row in matrix["rows"]] == ["question-0", "question-1"]
    assert matrix["rows"][0]["text"] == "Question 0?"
    cells = {(c["model_id"], c["region"]): c for c in matrix["rows"][0]["cells"]}
    assert len(cells) == 6
    assert cells["model-1", "eu"]["executions"][0]["excerpt"] == "an answer"
    rows = await everything(stage, "/v1/jobs/job-1/matrix", limit=2, model="model-1", region=["us", "eu"])
    assert [len(row["cells"]) for row in rows] == [2] * 5  # type: ignore[arg-type] # a list, from JSON


async def test_a_question_that_nobody_told_is_read_from_its_prompts(stage: Stage) -> None:
    spec = await stage.accept("job-1")
    await stage.store(facts.every(await stage.open("job-1", spec, 0, told=False)))
    await stage.store(facts.every(await stage.open("job-1", spec, 1)))
    await stage.open("job-1", spec, 2, told=False)
    rows = (await stage.http.get("/v1/jobs/job-1/matrix")).json()["rows"]
    assert [row["text"] for row in rows] == ["What is the most important invention in history?", "Question 1?", None]


async def test_the_summary_adds_up(stage: Stage) -> None:
    spec = await stage.accept("job-1", None)
    batch = await stage.open("job-1", spec, 0)
    some = list(facts.every(batch))
    some[0] = facts.observed(batch, batch.cells[0], text="")
    some[1] = facts.ended(batch, batch.cells[1], ExecutionStatus.TIMED_OUT)
    await stage.store(some)
    summary = (await stage.http.get("/v1/jobs/job-1/summary")).json()
    rows = {(row["model_id"], row["region"]): row for row in summary["rows"]}
    assert len(rows) == 6
    assert rows["model-0", "us"]["empties"] == 1
    assert rows["model-0", "eu"]["success_rate"] == 0
    assert rows["model-0", "eu"]["latency_s"] is None
    assert rows["model-1", "eu"]["latency_s"] == {"p50": 1.5, "p95": 1.5, "p99": 1.5}
    assert rows["model-1", "eu"]["cost"]["amount"] == pytest.approx(2 * 1.5 * 0.001 / 10)
    assert summary["counts"] == {"completed": 5, "failed": 0, "timed_out": 1, "cancelled": 0}


async def test_what_has_not_begun_is_empty_and_what_is_unknown_is_missing(stage: Stage) -> None:
    await stage.http.post("/v1/jobs", json=_document(), headers={"Idempotency-Key": "young"})
    for part in ("", "/executions", "/matrix", "/summary", "/batches", "/export"):
        assert (await stage.http.get(f"/v1/jobs/young{part}")).status_code == 200, part
        missing = await stage.http.get(f"/v1/jobs/nobody{part}")
        assert missing.status_code == 404, part
        assert missing.json()["type"] == "urn:parallax:problem:not-found"
