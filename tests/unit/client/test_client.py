"""The client against scripted answers: requests as the API wants them, failures as errors one can act on."""

import json
from collections.abc import Callable
from uuid import UUID

import httpx
import pytest

from parallax.client import AccessDeniedError, ConflictError, NotFoundError, ParallaxClient, Results
from parallax.client.events import GIVE_UP_AFTER, follow_events
from parallax.client.transport import Transport
from parallax.contracts.job import JobSpec
from parallax.errors import InvalidInputError, InvalidJobError, UnavailableError

SPEC = JobSpec.model_validate(
    {
        "name": "n",
        "questions": ({"id": "q1", "text": "Why?"},),
        "models": ({"id": "m"},),
        "regions": ("us",),
    }
)
Handler = Callable[[httpx.Request], httpx.Response]


def client_of(handler: Handler, *, key: str | None = None) -> ParallaxClient:
    return ParallaxClient("http://api.test:8080/", key=key, transport=httpx.MockTransport(handler))


def problem(status: int, **fields: object) -> httpx.Response:
    document = {"type": "urn:x", "title": "t", "status": status, "detail": "the detail", "request_id": "r1", **fields}
    return httpx.Response(status, json=document, headers={"Content-Type": "application/problem+json"})


async def test_a_submission_carries_its_id_and_key() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert (request.method, str(request.url)) == ("POST", "http://api.test:8080/v1/jobs")
        assert request.headers["idempotency-key"] == "job-1"
        assert request.headers["authorization"] == "Bearer secret"
        assert JobSpec.model_validate_json(request.content) == SPEC
        return httpx.Response(202, json={"id": "job-1", "status": "submitted", "executions": 1, "batches": 1, "new": 1})

    async with client_of(answer, key="secret") as client:
        submitted = await client.submit(SPEC, job_id="job-1")
    assert (submitted.id, submitted.status, submitted.executions) == ("job-1", "submitted", 1)


@pytest.mark.parametrize(
    ("response", "error", "message"),
    [
        (problem(401), AccessDeniedError, "the detail"),
        (problem(403), AccessDeniedError, "the detail"),
        (problem(404), NotFoundError, "the detail"),
        (problem(409), ConflictError, "the detail"),
        (problem(422, errors=[{"message": "is odd", "parameter": "limit"}]), InvalidInputError, "limit: is odd"),
        (problem(500), UnavailableError, "the detail (request r1)"),
        (problem(503), UnavailableError, "the detail (request r1)"),
        (httpx.Response(502, text="<html>bad gateway"), UnavailableError, "answered with HTTP status 502"),
        (httpx.Response(200, text="<html>welcome"), UnavailableError, "not one of Parallax's API"),
        (httpx.Response(200, json={"id": 7}), UnavailableError, "not one of Parallax's API"),
    ],
)
async def test_failures_are_errors_one_can_act_on(
    response: httpx.Response, error: type[Exception], message: str
) -> None:
    async with client_of(lambda _: response) as client:
        with pytest.raises(error) as caught:
            await client.job("j")
    assert message in str(caught.value)
    assert type(caught.value) is error


async def test_a_refused_job_lists_its_problems() -> None:
    places = [{"pointer": "/models/0", "message": "unknown model", "allowed": "a, b"}, {"message": "?"}]
    async with client_of(lambda _: problem(422, errors=places)) as client:
        with pytest.raises(InvalidJobError) as caught:
            await client.submit(SPEC)
    assert [(p.pointer, p.message, p.allowed) for p in caught.value.problems] == [
        ("/models/0", "unknown model", "a, b"),
        ("", "?", None),
    ]


async def test_an_api_that_is_away_is_unavailable() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    async with client_of(refuse) as client:
        with pytest.raises(UnavailableError, match=r"api\.test:8080 cannot be reached: refused"):
            await client.job("j")
        with pytest.raises(UnavailableError, match="cannot be reached"):
            _ = [part async for part in client.export("j", "csv")]


@pytest.mark.parametrize("url", ["", "api.test", "ftp://api.test", "http://", "http://[::1"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(InvalidInputError, match="expected http://HOST:PORT"):
        ParallaxClient(url)


async def test_pages_are_read_to_the_limit_and_no_further() -> None:
    asked: list[dict[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        first = int(request.url.params.get("cursor", "0"))
        items = [_execution(first + n) for n in range(int(request.url.params["limit"]))]
        return httpx.Response(200, json={"items": items, "next_cursor": str(first + len(items))})

    async with client_of(answer) as client:
        found = [e async for e in client.executions("j", region=["us"], limit=250)]
    assert [execution.question_index for execution in found] == list(range(250))
    assert [(params["limit"], params.get("cursor")) for params in asked] == [("200", None), ("50", "200")]
    assert {params["region"] for params in asked} == {"us"}


async def test_every_page_of_a_merged_matrix_is_asked_for_merged() -> None:
    asked: list[tuple[str | None, str | None]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        merged, cursor = (request.url.params.get(name) for name in ("merged", "cursor"))
        asked.append((merged, cursor))
        row = {"question_index": len(asked), "question_id": "q", "text": None, "cells": []}
        page = {"job_id": "j", "jobs": ["j", "again"], "models": [], "regions": [], "samples": 1, "rows": [row]}
        return httpx.Response(200, json=page | {"next_cursor": None if cursor else "next"})

    async with client_of(answer) as client:
        first, rows = await client.matrix_rows("j", limit=10, merged=True)
        await client.matrix("j")
    assert (first.jobs, len(rows)) == (("j", "again"), 2)
    assert asked == [("true", None), ("true", "next"), (None, None)]


def _execution(index: int) -> dict[str, object]:
    return {
        "id": str(UUID(int=index)), "job_id": "j", "lane": "all", "question_index": index, "question_id": "q",
        "model_id": "m", "model": "m", "region": "us", "sample": 0, "status": "completed", "observed": True,
        "finish_reason": "stop", "refused": False, "output_chars": 1, "excerpt": "a", "prompt_tokens": 1,
        "completion_tokens": 1, "attempt_count": 1, "duration_s": 0.5, "started_at": None,
        "completed_at": "2026-01-01T00:00:00Z", "error": None,
    }  # fmt: skip


class TestEvents:
    """A stream that breaks is taken up behind the last event."""

    def transport(self, handler: Handler) -> Transport:
        return Transport("http://api.test", transport=httpx.MockTransport(handler))

    async def test_a_lost_connection_costs_no_event_and_repeats_none(self) -> None:
        asked: list[str | None] = []
        streams = [
            "id: 1\nevent: job.accepted\ndata: {}\n\nid: 2\nevent: job.st",
            None,
            'event: progress\ndata: {}\n\nid: 2\nevent: job.started\ndata: {"a": 1}\n\n',
            ": ping\n\nid: 3\nevent: done\ndata: {}\n\n",
        ]

        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(request.headers.get("last-event-id"))
            stream = streams[len(asked) - 1]
            if stream is None:
                raise httpx.ReadError("reset", request=request)
            return httpx.Response(200, text=stream, headers={"Content-Type": "text/event-stream"})

        pauses: list[float] = []

        async def sleep(seconds: float) -> None:
            pauses.append(seconds)

        events = [e async for e in follow_events(self.transport(answer), "/e", sleep=sleep)]
        assert [(event.number, event.kind) for event in events if event.kind != "progress"] == [
            ("1", "job.accepted"),
            ("2", "job.started"),
            ("3", "done"),
        ]
        assert asked == [None, "1", "1", "2"]
        assert pauses == [0.25, 0.5, 0.25]

    async def test_it_gives_up_in_the_end(self) -> None:
        calls = 0

        def refuse(request: httpx.Request) -> httpx.Response:
            nonlocal calls
            calls += 1
            raise httpx.ConnectError("refused", request=request)

        async def no_sleep(_: float) -> None:
            return

        with pytest.raises(UnavailableError):
            _ = [e async for e in follow_events(self.transport(refuse), "/e", sleep=no_sleep)]
        assert calls == GIVE_UP_AFTER + 1

    async def test_an_unknown_job_is_not_waited_for(self) -> None:
        with pytest.raises(NotFoundError):
            _ = [e async for e in follow_events(self.transport(lambda _: problem(404)), "/e")]


async def test_results_come_as_rows() -> None:
    body = b"".join(json.dumps({"n": n, "text": "a\u2028b"}, ensure_ascii=False).encode() + b"\n" for n in range(3))
    async with client_of(lambda _: httpx.Response(200, content=body)) as client:
        found = await client.results("j")
    assert found == Results([{"n": n, "text": "a\u2028b"} for n in range(3)])


async def test_a_long_comparison_is_waited_for() -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        if len(seen) < 3:
            return httpx.Response(202, json={"job_id": "job-1", "questions_done": len(seen), "questions": 9})
        return httpx.Response(200, text="pair,verdict")

    told: list[int] = []
    async with client_of(answer) as client:
        table = await client.compare_csv(
            "job-1",
            with_job_id="job-2",
            question=["q"],
            on_progress=lambda progress: told.append(progress.questions_done),
        )
    assert table == b"pair,verdict"
    assert told == [1, 2]
    assert seen[0] == "http://api.test:8080/v1/jobs/job-1/comparison?with=job-2&question=q&format=csv"


async def test_a_comparison_that_cannot_be_made_is_an_error() -> None:
    async with client_of(lambda _: problem(409)) as client:
        with pytest.raises(ConflictError):
            await client.compare("job-1")
    async with client_of(lambda _: problem(413)) as client:
        with pytest.raises(InvalidInputError, match="the detail"):
            await client.compare("job-1")
