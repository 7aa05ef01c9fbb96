"""Whatever is wrong with a request, the answer is a problem (RFC 9457), and the service lives on."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parallax.clock import SystemClock
from parallax.contracts.job import MAX_JOB_BYTES
from parallax.contracts.routing import SUBMISSIONS
from parallax.db.engine import create_engine
from results.api.app import create_api
from results.api.problems import TYPE_PREFIX
from results.api.settings import ApiSettings
from tests.integration.api_stage import CATALOG, Stage, job_document, staged


@pytest.fixture
async def stage(database_url: str) -> AsyncIterator[Stage]:
    async with staged(database_url) as running:
        yield running


def problem_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The problem in an answer, which names the same request as the header."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["type"].startswith(TYPE_PREFIX)
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/v2", {}, 404),
        ("GET", "/v1/jobs/", {}, 404),
        ("DELETE", "/v1/jobs", {}, 405),
        ("PUT", "/v1/jobs/job-1", {}, 405),
        ("GET", "/v1/jobs", {"Accept": "text/html"}, 406),
        ("GET", "/v1/jobs", {"Accept": "application/json;q=0, */*"}, 406),
        ("POST", "/v1/jobs", {"Content-Type": "text/plain"}, 415),
        ("POST", "/v1/jobs", {}, 415),
        ("GET", "/v1/jobs?limit=0", {}, 422),
        ("GET", "/v1/jobs?limit=501", {}, 422),
        ("GET", "/v1/jobs?limit=many", {}, 422),
        ("GET", "/v1/jobs?status=sleeping", {}, 422),
        ("GET", "/v1/jobs?name=" + "x" * 201, {}, 422),
        ("GET", "/v1/jobs?name=%00", {}, 422),
        ("GET", "/v1/jobs?metadata=novalue", {}, 422),
        ("GET", "/v1/jobs?created_after=yesterday", {}, 422),
        ("GET", "/v1/jobs?created_after=2026-01-01T00:00:00", {}, 422),
        ("GET", "/v1/jobs?created_after=1700000000", {}, 422),
        ("GET", "/v1/jobs/job-1/export?format=parquet", {}, 404),
        ("GET", "/v1/jobs?created_after=0001-01-01T00:00:00%2B23:00", {}, 422),
        ("GET", "/v1/jobs?cursor=bm9uc2Vuc2U", {}, 422),
        ("GET", "/v1/jobs?cursor=" + "x" * 3000, {}, 422),
        ("GET", "/v1/jobs/UPPER", {}, 422),
        ("GET", "/v1/jobs/job-1/executions/7", {}, 422),
        ("GET", "/v1/jobs/job-1/executions?" + "model=m&" * 21, {}, 422),
        ("GET", "/v1/jobs?" + "x" * 33_000, {}, 414),
    ],
)
async def test_each_mistake_has_its_problem(
    stage: Stage, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    content = b"{}" if method == "POST" else None
    response = await stage.http.request(method, path, headers=headers, content=content)
    problem = problem_of(response, status)
    if status == 405:
        assert set(response.headers["allow"].split(", ")) <= {"GET", "POST"}
    if status == 422:
        assert problem["errors"]


async def test_a_405_names_every_method_of_the_path(stage: Stage) -> None:
    response = await stage.http.delete("/v1/jobs")
    assert set(response.headers["allow"].split(", ")) == {"GET", "POST"}


async def test_a_request_keeps_its_own_id(stage: Stage) -> None:
    response = await stage.http.get("/v1/nothing", headers={"X-Request-Id": "trace-1234"})
    assert problem_of(response, 404)["request_id"] == "trace-1234"
    forged = await stage.http.get("/v1/nothing", headers={"X-Request-Id": "x" * 100})
    assert problem_of(forged, 404)["request_id"] != "x" * 100


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": ' + b"9" * 10_000 + b"}"],
)
async def test_what_is_no_json_is_refused(stage: Stage, body: bytes) -> None:
    problem_of(await stage.http.post("/v1/jobs", content=body, headers=JSON), 400)


async def test_what_is_beyond_the_bounds_of_a_job_is_refused_before_it_is_read(stage: Stage) -> None:
    problem = problem_of(await stage.http.post("/v1/jobs", content=b"[" * 100_000, headers=JSON), 422)
    assert problem["errors"] == [{"message": "is nested too deeply", "pointer": "", "allowed": "at most 64 levels"}]


async def test_a_key_that_is_given_twice_has_its_place(stage: Stage) -> None:
    body = json.dumps(job_document(1)).replace('"text":', '"text": "Why?", "text":')
    problem = problem_of(await stage.http.post("/v1/jobs", content=body, headers=JSON), 422)
    assert [(place["pointer"], place["message"]) for place in problem["errors"]] == [
        ("/questions/0/text", "is given twice")
    ]


async def test_a_body_beyond_the_limit_is_refused_however_it_is_sent(stage: Stage) -> None:
    announced = {**JSON, "Content-Length": str(MAX_JOB_BYTES + 1)}
    problem_of(await stage.http.post("/v1/jobs", content=b"", headers=announced), 413)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(MAX_JOB_BYTES // 1_000_000 + 2):
            yield b" " * 1_000_000

    problem_of(await stage.http.post("/v1/jobs", content=endless(), headers=JSON), 413)
    await stage.accept("job-1")
    small = await stage.http.post("/v1/jobs/job-1/cancel", json={"reason": "x" * 70_000})
    problem_of(small, 413)


async def test_a_cursor_belongs_to_its_listing_and_filters(stage: Stage) -> None:
    await stage.complete_job("job-1", 2)
    cursor = (await stage.http.get("/v1/jobs/job-1/executions", params={"limit": 1})).json()["next_cursor"]
    same = await stage.http.get("/v1/jobs/job-1/executions", params={"limit": 3, "cursor": cursor})
    assert same.status_code == 200
    for path, params in (
        ("/v1/jobs", {}),
        ("/v1/jobs/job-1/matrix", {}),
        ("/v1/jobs/job-1/batches", {}),
        ("/v1/jobs/job-1/executions", {"model": "model-1"}),
    ):
        problem = problem_of(await stage.http.get(path, params={**params, "cursor": cursor}), 422)
        assert problem["type"] == "urn:parallax:problem:invalid-cursor"


async def test_an_internal_failure_tells_nothing_of_itself(stage: Stage) -> None:
    @stage.app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("the password is 12345")

    response = await stage.http.get("/broken")
    problem_of(response, 500)
    assert "12345" not in response.text


async def test_a_database_that_is_away_is_a_503(database_url: str, tmp_path: Path) -> None:
    async with staged(database_url) as stage:
        away = create_engine(f"postgresql://nobody@/none?host={tmp_path}", application_name="test")
        app = create_api(
            engine=away, bus=stage.bus, catalog=CATALOG, clock=SystemClock(), settings=ApiSettings(stream_poll_s=0.02)
        )
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            response = await client.get("/v1/jobs")
            problem_of(response, 503)
            assert response.headers["retry-after"] == "5"
            problem_of(await client.post("/v1/jobs", json=job_document()), 503)
            assert await stage.published(SUBMISSIONS) == []
            assert (await client.get("/readyz")).json() == {"ready": False, "probes": {"database": False}}
            assert (await client.get("/livez")).status_code == 200
        await away.dispose()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://localhost"}, 202),
        ({}, 202),
    ],
)
async def test_other_sites_pages_cannot_change_anything(stage: Stage, headers: dict[str, str], status: int) -> None:
    await stage.accept("job-1")
    response = await stage.http.post("/v1/jobs/job-1/cancel", headers=headers)
    assert response.status_code == status


@pytest.mark.parametrize(
    ("host", "status"),
    [("rebound.example", 400), ("127.0.0.1:8000", 200), ("[::1]:8000", 200), ("localhost", 200), ("[", 400)],
)
async def test_an_open_service_answers_only_to_its_own_names(stage: Stage, host: str, status: int) -> None:
    assert (await stage.http.get("/v1/jobs", headers={"Host": host})).status_code == status


_TEXT = st.text(alphabet=st.characters(codec=None), max_size=30) | st.sampled_from(
    ["\0", "\ud800", "\u202e", "=1+1", "<script>", "'; DROP TABLE results.jobs; --", "\x1b[2J", "\U0010ffff", "%00"]
)
_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)
_FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@_FUZZ
@given(
    field=st.sampled_from(["name", "questions", "models", "regions", "metadata", "limits", "only", "samples", "x"]),
    value=_VALUE,
)
async def test_hostile_jobs_are_accepted_whole_or_refused_whole(stage: Stage, field: str, value: object) -> None:
    body = json.dumps({**job_document(1), field: value})
    response = await stage.http.post("/v1/jobs", content=body, headers=JSON)
    waiting = len(await stage.published(SUBMISSIONS))
    if response.status_code == 202:
        assert waiting == 1
        assert (await stage.http.get(response.headers["location"])).status_code == 200
    else:
        problem_of(response, 422)
        assert waiting == 0


@_FUZZ
@given(
    path=st.sampled_from(["/v1/jobs", "/v1/jobs/{}", "/v1/jobs/job-1/executions", "/v1/jobs/{}/matrix", "/{}"]),
    part=_TEXT,
    name=st.sampled_from(["name", "metadata", "status", "cursor", "model", "question", "created_after", "limit"]),
    value=_TEXT,
)
async def test_hostile_urls_never_break_the_service(stage: Stage, path: str, part: str, name: str, value: str) -> None:
    def quoted(some: str) -> str:
        return "".join(f"%{byte:02x}" for byte in some.encode("utf-8", "surrogatepass"))

    response = await stage.http.get(f"{path.format(quoted(part))}?{name}={quoted(value)}")
    assert response.status_code < 500
    if response.headers["content-type"].startswith("text/html"):
        assert path == "/{}"  # the web page's own address, when the part is empty
    elif response.status_code != 200:
        problem_of(response, response.status_code)
