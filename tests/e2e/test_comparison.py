"""A whole job whose truth is known: two regions differ by their system prompt alone, a third repeats the first.

The endpoints of the regions give answers that the local model gave to these very prompts, so that command, page and API
have one story to tell, and the same one every time.
"""

import csv
import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
import yaml

from parallax.contracts.comparison import Comparison, Verdict
from parallax_cli.connect import Need, Target, connected
from parallax_cli.exits import ExitCode
from parallax_cli.mock_endpoint import create_mock, serving
from parallax_cli.mock_script import Rule, Script, Step
from tests.benchmarks.comparison.generate import CONDITIONS, QUESTIONS
from tests.benchmarks.comparison.scenarios import FIRST_EIGHT, pools
from tests.e2e.command import Parallax, a_home

SAMPLES = 10
REGIONS = {"us": ("us", 20), "in": ("in", 20), "us-again": ("us", 30)}
"""Where the answers of a region come from: a pool, and where in it they begin."""


def script(pool: str, start: int) -> Script:
    """Answers the calls of each question with the answers of a pool, one after the other."""
    return Script(
        rules=tuple(
            Rule(
                contains=QUESTIONS[question],
                steps=tuple(Step(text=text) for text in pools()[pool][question][start : start + SAMPLES]),
            )
            for question in FIRST_EIGHT
        )
    )


@pytest.fixture
async def parallax(tmp_path: Path) -> AsyncIterator[Parallax]:
    """A home whose three regions answer differently."""
    async with AsyncExitStack() as stack:
        regions = {}
        for name, (pool, start) in REGIONS.items():
            url = await stack.enter_async_context(serving(create_mock(script(pool, start))))
            regions[name] = {"name": CONDITIONS[pool].place, "endpoint": f"openai+{url}"}
        models = {"small": {"upstream": "small", "regions": list(REGIONS)}}
        catalog = tmp_path / "catalog.yaml"
        catalog.write_text(yaml.safe_dump({"regions": regions, "models": models}), encoding="utf-8")
        yield await stack.enter_async_context(a_home(PARALLAX_CATALOG=str(catalog)))


def job_file(folder: Path) -> Path:
    path = folder / "survey.json"
    job = {
        "name": "survey",
        "questions": [{"id": question, "text": QUESTIONS[question]} for question in FIRST_EIGHT],
        "models": [{"id": "small"}],
        "regions": list(REGIONS),
        "system_prompt": "You are a helpful assistant based in {region_name}.",
        "samples": SAMPLES,
    }
    path.write_text(json.dumps(job), encoding="utf-8")
    return path


TRUTH = {
    ("us", "in"): Verdict.DIFFERS,
    ("us", "us-again"): Verdict.NO_DIFFERENCE_FOUND,
    ("in", "us-again"): Verdict.DIFFERS,
}


async def test_command_page_and_api_tell_one_story(parallax: Parallax, tmp_path: Path) -> None:
    ran = await parallax("run", str(job_file(tmp_path)), "--job-id", "survey")
    assert ran.code == 0, ran.err

    told = await parallax("compare", "survey", "--json")
    found = Comparison.model_validate_json(told.out)
    assert {(pair.a.region, pair.b.region): pair.verdict for pair in found.pairs} == TRUTH
    assert (found.questions, found.answers, found.final) == (8, 240, True)

    lines = await parallax("compare", "survey")
    assert lines.out.splitlines()[0] == "2 of 3 pairs differ; no difference found in 1."
    for (a, b), verdict in TRUTH.items():
        assert f"small: {a} - {b}: {verdict.replace('_', ' ')}" in lines.out
    assert "\x1b" not in lines.out

    table = await parallax("compare", "survey", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(table.out)))
    assert {((row["region_a"], row["region_b"]), row["pair_verdict"]) for row in rows} == set(TRUTH.items())

    failing = await parallax("compare", "survey", "--fail-on-difference")
    assert failing.code == ExitCode.DIFFERENCE
    calm = await parallax("compare", "survey", "--against", "no-such-region")
    assert calm.code == ExitCode.INVALID_INPUT
    assert "no region of this name" in calm.err
    await page_and_api_agree(parallax, found)


async def page_and_api_agree(parallax: Parallax, found: Comparison) -> None:
    """What a running home serves is what the command told."""
    environment = {"PARALLAX_HOME": str(parallax.home), **parallax.environment}
    async with connected(Target(environment=environment), Need.READ) as client:
        assert await client.compare("survey") == found
        socket = client._transport.url
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=socket), base_url="http://home") as http:
            page = (await http.get("/jobs/survey/comparison")).text
    for pair in found.pairs:
        assert pair.verdict is not None
        words = pair.verdict.replace("_", " ")
        assert f'<bdi>{pair.label}</bdi> <span class="status {pair.verdict}">{words}</span>' in page
        assert pair.sentences[0] in page.replace("&#39;", "'").replace("&lt;", "<")
