"""The web page shows what the API tells, and what models wrote stays text."""

import random
from collections.abc import AsyncIterator
from html.parser import HTMLParser

import pytest

from parallax.contracts.plan import Cell
from tests.fakes import facts
from tests.integration.api_stage import Stage, staged
from tests.integration.comparison_stage import answered, document, ordinary

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


async def test_the_comparison_is_a_page_with_its_controls_its_square_and_its_map(stage: Stage) -> None:
    models = [{"id": f"model-{n}", "model": "smollm2-135m", "parameters": {"seed": 100 * n}} for n in range(2)]
    await answered(stage, "job-1", document(4, models=models))
    page = await seen(stage, "/jobs/job-1/comparison")
    assert page.text.index("Controls: 3 repeats") < page.text.index("pairs differ")
    assert page.tags.count("table") == 5, "a square and a map for each model, and what came of the calls"
    assert "script" not in page.tags
    classes = [value or "" for name, value in page.attributes if name == "class"]
    assert any(value.endswith(" differs") and value.startswith("s") for value in classes)
    assert "calm" in classes
    assert "cricket" in page.text
    assert "does not mean that there is none" in page.text
    assert ("href", "/jobs/job-1/compare/0") in page.attributes
    side = await seen(stage, "/jobs/job-1/compare/0")
    assert "Repeats show up to" in side.text
    assert "typical" in side.text
    assert "cricket" in side.text
    job = await seen(stage, "/jobs/job-1")
    assert ("href", "/jobs/job-1/comparison") in job.attributes
    assert "0 of 32 (0\N{EN DASH}11 %)" in job.text


async def test_hostile_words_stay_text_in_a_comparison(stage: Stage) -> None:
    def hostile(draw: random.Random, _: int, cell: Cell) -> str:
        return ordinary(draw, *([HOSTILE] if cell.region == "us" else []))

    await answered(stage, "job-1", document(2), hostile)
    for path in ("/jobs/job-1/comparison", "/jobs/job-1/compare/0", "/jobs/job-1/comparison?with=&across=&question="):
        page = await seen(stage, path)
        assert "alert" in page.text, "one of the telling words"
        assert not {"script", "b onerror"} & set(page.tags)
        assert page.tags.count("img") == 1


async def test_comparisons_that_cannot_be_made_are_pages_too(stage: Stage) -> None:
    await answered(stage, "job-1", document(1, regions=["us"]))
    assert "no pair to compare" in (await seen(stage, "/jobs/job-1/comparison")).text
    await seen(stage, "/jobs/none/comparison", 404)
    for query in ("across=mars", "with=job-1", "with=%00", "against=mars", "question=none"):
        await seen(stage, f"/jobs/job-1/comparison?{query}", 422)
    await seen(stage, "/jobs/job-1/comparison?with=other", 404)


async def test_two_jobs_on_a_page(stage: Stage) -> None:
    await answered(stage, "job-1", document(2))
    await answered(stage, "job-2", document(3))
    page = await seen(stage, "/jobs/job-1/comparison?with=job-2")
    assert "Two jobs compared" in page.text
    assert "the other job did not ask it" in page.text
