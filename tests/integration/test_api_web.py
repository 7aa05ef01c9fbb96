"""The web page shows what the API tells, and what models wrote stays text."""

from collections.abc import AsyncIterator
from html.parser import HTMLParser

import pytest

from tests.fakes import facts
from tests.integration.api_stage import Stage, staged

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)> & \" ' \u202e \x1b[31m {{ 7 * 7 }}"


@pytest.fixture
async def stage(database_url: str) -> AsyncIterator[Stage]:
    async with staged(database_url) as running:
        yield running


class Seen(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


async def seen(stage: Stage, path: str, status: int = 200) -> Seen:
    response = await stage.http.get(path)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "unsafe" not in response.headers["content-security-policy"]
    page = Seen(response.text)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "style"]
    assert not [
        v for n, v in page.attributes if n in {"src", "href", "action"} and (v or "").startswith(("http", "//"))
    ]
    return page


async def test_every_page_shows_a_job(stage: Stage) -> None:
    spec = await stage.complete_job("job-1", 3)
    batch_id = f"/v1/jobs/job-1/executions?question={spec.questions[0].id}"
    execution = (await stage.http.get(batch_id)).json()["items"][0]["id"]
    assert "survey" in (await seen(stage, "/")).text
    job = await seen(stage, "/jobs/job-1")
    assert job.text.count("an answer") == 18
    assert "Question 0?" in job.text
    assert ("href", "/v1/jobs/job-1/export?format=csv") in job.attributes
    assert (await seen(stage, "/jobs/job-1/compare/1")).text.count("an answer") == 6
    assert "prompt sha256" in (await seen(stage, f"/jobs/job-1/executions/{execution}")).text
    assert "No executor is alive" in (await seen(stage, "/regions")).text


async def test_what_a_model_wrote_stays_text(stage: Stage) -> None:
    document = {"name": HOSTILE.replace("\x1b", ""), "questions": [{"id": "q", "text": HOSTILE.replace("\x1b", "")}]}
    document |= {"models": [{"id": "model-0", "model": "smollm2-135m"}], "regions": ["us"]}
    spec = await stage.accept("job-1", document)
    batch = await stage.open("job-1", spec, 0)
    fact = facts.observed(batch, batch.cells[0], text=HOSTILE)
    await stage.store([fact])
    for path in ("/", "/jobs/job-1", "/jobs/job-1/compare/0", f"/jobs/job-1/executions/{fact.execution_id}"):
        page = await seen(stage, path)
        assert "<script>alert(1)</script>" in page.text
        assert page.tags.count("script") <= 1  # our own, on the page of a running job
        assert "{{ 7 * 7 }}" in page.text
        assert page.tags.count("img") == 1


async def test_a_long_job_comes_in_pages(stage: Stage) -> None:
    spec = await stage.accept("job-1", None)
    await stage.complete_job("job-2", 45)
    page = await seen(stage, "/jobs/job-2?model=model-1")
    (following,) = [value for name, value in page.attributes if name == "href" and "cursor=" in (value or "")]
    assert page.tags.count("article") == 20
    second = await seen(stage, f"/jobs/job-2{following}")
    assert second.tags.count("article") == 20
    assert spec.samples == 1
    assert "Nothing matches" in (await seen(stage, "/jobs/job-2?question=nothing")).text
    assert "No answer yet" in (await seen(stage, "/jobs/job-1")).text


async def test_forms_send_empty_values_for_what_was_not_chosen(stage: Stage) -> None:
    await stage.complete_job("job-1", 1)
    assert "survey" in (await seen(stage, "/?status=&name=")).text
    assert "No job matches" in (await seen(stage, "/?status=failed&name=")).text
    assert (await seen(stage, "/jobs/job-1?model=&region=us&status=&question=")).text.count("an answer") == 2


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/jobs/nobody", 404),
        ("/jobs/job-1/compare/99", 404),
        ("/jobs/job-1/compare/x", 422),
        ("/jobs/job-1/executions/00000000-0000-0000-0000-000000000000", 404),
        ("/?status=sleeping", 422),
        ("/?cursor=x", 422),
        ("/jobs/job-1?model=%00", 422),
    ],
)
async def test_a_wrong_address_is_told_as_a_page(stage: Stage, path: str, status: int) -> None:
    await stage.complete_job("job-1", 1)
    assert "All jobs" in (await seen(stage, path, status)).text


async def test_the_files_of_the_page_are_served(stage: Stage) -> None:
    for name, kind in (("page.css", "text/css"), ("follow.js", "text/javascript"), ("icon.svg", "image/svg+xml")):
        response = await stage.http.get(f"/static/{name}")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(kind)
    assert (await stage.http.get("/static/../pages.py")).status_code == 404


async def test_a_job_that_is_half_way_shows_what_there_is(stage: Stage) -> None:
    spec = await stage.accept("job-1")
    batch = await stage.open("job-1", spec, 0)
    await stage.store([facts.observed(batch, batch.cells[0])])
    job = await seen(stage, "/jobs/job-1")
    assert job.text.count("an answer") == 1
    assert ("src", "/static/follow.js") in job.attributes
    assert (await seen(stage, "/jobs/job-1/compare/0")).text.count("no answer yet") == 5
