"""Text, numbers and sizes that nobody sends by accident: each ends well, or is refused with its reason."""

import json
from typing import Any

import pytest

from executor.endpoints.answers import MAX_TEXT_CHARS
from executor.endpoints.openai import OpenAIEndpoint
from executor.endpoints.port import CallTrace, ModelAnswer, ModelRequest
from parallax.contracts.job import (
    MAX_BATCH_EXECUTIONS,
    MAX_JOB_BYTES,
    MAX_QUESTION_CHARS,
    MAX_QUESTIONS,
    MAX_SYSTEM_PROMPT_CHARS,
)
from parallax.contracts.messages import CancelJob, JobAccepted, JobRejected
from parallax_cli.mock_script import Step
from tests.fakes.endpoint import FakeEndpoint
from tests.fakes.model_server import model_server
from tests.harness.results import row
from tests.integration.whole_stage import job, whole

EVERY_PLANE = "".join(chr(plane * 0x10000 + place) for plane in range(17) for place in (0x41, 0x1F600 % 0xD800, 0xFFFE))
HOSTILE = f"{EVERY_PLANE}\x1b]0;title\x07\x1b[2J\x9b31m\r\u202e<script>alert(1)</script>&lt;=cmd()\u2028{{}}%s\\u0000"
"""Every plane, noncharacters, terminal escapes, HTML, formulas, templates, and what only looks like a NUL."""

HUGE_NUMBER = 10**30


def one(text: str = "Why?", **changes: Any) -> dict[str, Any]:
    """A job of one question to one model in one region."""
    return job(regions=["us"], models=[{"id": "one"}]) | {"questions": [{"id": "q", "text": text}], **changes}


async def test_prompts_and_answers_of_megabytes_come_through(database_url: str) -> None:
    """The longest allowed, in characters that take the most bytes; control characters take six each in JSON."""
    question, system = "\U0001f680" * MAX_QUESTION_CHARS, "\x01" * MAX_SYSTEM_PROMPT_CHARS
    answer = "\x1b" * MAX_TEXT_CHARS
    async with model_server(Step(text=answer)) as server:
        endpoint = OpenAIEndpoint(server.url)
        async with whole(database_url, {"us": endpoint}) as stage:
            await stage.submit("long", one(question, system_prompt=system))
            end = await stage.finished("long")
            (stored,) = await stage.executions("long")
        await endpoint.close()
    assert end["status"] == "completed", stored["error"]
    assert stored["output"]["text"] == answer
    assert [message["content"] for message in stored["messages"]] == [system, question]


async def test_an_answer_beyond_every_bound_fails_alone(database_url: str) -> None:
    async with model_server(Step(text="x" * (MAX_TEXT_CHARS + 1))) as server:
        endpoint = OpenAIEndpoint(server.url)
        async with whole(database_url, {"us": endpoint}) as stage:
            await stage.submit("endless", one(limits={"max_attempts": 1}))
            end = await stage.finished("endless")
            (stored,) = await stage.executions("endless")
        await endpoint.close()
    assert (end["status"], stored["error"]["code"]) == ("failed", "malformed_answer")
    assert str(MAX_TEXT_CHARS) in stored["error"]["message"]


async def test_text_of_every_plane_is_kept_as_it_is(database_url: str) -> None:
    served = {"us": FakeEndpoint((Step(text=HOSTILE, refusal=HOSTILE),))}
    document = one(HOSTILE, name=HOSTILE[:200], metadata={HOSTILE: [HOSTILE]})
    document["questions"][0] |= {"tags": [HOSTILE[:100]], "metadata": {HOSTILE: HOSTILE}}
    async with whole(database_url, served) as stage:
        accepted = await stage.submit("planes", document)
        assert isinstance(accepted, JobAccepted), accepted
        end = await stage.finished("planes")
        (stored,) = await stage.executions("planes")
    assert (end["name"], end["metadata"]) == (HOSTILE[:200], {HOSTILE: [HOSTILE]})
    assert stored["output"] == {"text": HOSTILE, "refusal": HOSTILE}
    assert served["us"].calls[0].request.messages[-1].content == stored["messages"][-1]["content"] == HOSTILE
    assert stored["receipt"]["replaced_characters"] == 0


@pytest.mark.parametrize("code", [0, 0xD800, 0xDFFF], ids=["NUL", "high surrogate", "low surrogate"])
async def test_text_that_no_database_stores_is_refused_in_a_job_and_replaced_in_an_answer(
    database_url: str, code: int
) -> None:
    text = f"a{chr(code)}b"
    async with model_server(Step(text=text)) as server:
        endpoint = OpenAIEndpoint(server.url)
        async with whole(database_url, {"us": endpoint}) as stage:
            refused = await stage.submit("asked", one(text))
            await stage.submit("answered", one())
            end = await stage.finished("answered")
            (stored,) = await stage.executions("answered")
        await endpoint.close()
    assert isinstance(refused, JobRejected)
    assert [problem.pointer for problem in refused.problems] == ["/job/questions/0/text"]
    assert (end["status"], stored["output"]["text"]) == ("completed", "a\ufffdb")
    assert stored["receipt"]["replaced_characters"] == 1


async def test_errors_that_cannot_be_stored_are_still_understood(database_url: str) -> None:
    refused, broken = Step(status=503, message="\x00\x1b[2J<b>"), Step(fail_after=1, message="\ud83d\x1b[2J<b>")
    async with model_server(refused, broken, Step(text="At last.")) as server:
        endpoint = OpenAIEndpoint(server.url)
        async with whole(database_url, {"us": endpoint}) as stage:
            await stage.submit("patient", one())
            end = await stage.finished("patient")
            (stored,) = await stage.executions("patient")
        await endpoint.close()
    assert end["status"] == "completed", stored["attempts"]
    told = [attempt["error"]["message"] for attempt in stored["attempts"][:2]]
    assert told == ["HTTP 503: \ufffd\x1b[2J<b>", "HTTP 500: \ufffd\x1b[2J<b>"]


class Boastful(FakeEndpoint):
    """Says everything that a provider may say besides its answer, and none of it can be stored."""

    async def call(self, request: ModelRequest, trace: CallTrace) -> ModelAnswer:
        """Answer."""
        hostile = "\x00\ud800" * 5_000
        trace.provider_call_id = trace.region_observed = hostile
        trace.first_byte()
        return ModelAnswer(
            text="An answer.",
            finish_reason=hostile,
            model_reported=hostile,
            provider_timings={"load_s": float("nan"), hostile: 1},
            versions={hostile: hostile},
        )


async def test_an_answer_is_not_lost_over_what_is_said_about_it(database_url: str) -> None:
    async with whole(database_url, {"us": Boastful()}) as stage:
        await stage.submit("boastful", one())
        end = await stage.finished("boastful")
        (stored,) = await stage.executions("boastful")
    assert (end["status"], stored["output"]["text"]) == ("completed", "An answer.")
    assert stored["finish_reason"].strip("\ufffd") == ""
    assert stored["receipt"]["timings"]["provider"] == {}


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"samples": HUGE_NUMBER}, "/job/samples"),
        ({"samples": -1}, "/job/samples"),
        ({"parameters": {"temperature": -HUGE_NUMBER}}, "/job/parameters/temperature"),
        ({"parameters": {"seed": 2**31}}, "/job/parameters/seed"),
        ({"limits": {"job_deadline_s": 0}}, "/job/limits/job_deadline_s"),
        ({"limits": {"max_attempts": True}}, "/job/limits/max_attempts"),
        ({"min_success_rate": 1.0001}, "/job/min_success_rate"),
    ],
)
async def test_numbers_out_of_range_are_refused_where_they_stand(
    database_url: str, changes: dict[str, Any], place: str
) -> None:
    async with whole(database_url, executors=False) as stage:
        answer = await stage.submit("number", one(**changes))
    assert isinstance(answer, JobRejected)
    assert place in {problem.pointer for problem in answer.problems}


@pytest.mark.parametrize("number", ["1e999", "NaN", "-Infinity", "9" * 5_000])
async def test_numbers_that_no_machine_holds_are_refused(database_url: str, number: str) -> None:
    body = json.dumps({"job_id": "number", "job": one(metadata={"x": "NUMBER"})}).replace('"NUMBER"', number)
    async with whole(database_url, executors=False) as stage:
        answer = await stage.submit_raw(body.encode())
    assert isinstance(answer, JobRejected)
    assert answer.reason.code == "invalid"


async def test_every_sample_of_the_largest_seed_has_a_seed_of_its_own(database_url: str) -> None:
    """Seeds wrap around; a task holds the seed of its sample, and nobody adds the sample again."""
    served = {"us": FakeEndpoint()}
    async with whole(database_url, served) as stage:
        await stage.submit("seeds", one(samples=4, parameters={"seed": 2**31 - 2}))
        end = await stage.finished("seeds")
        stored = await stage.executions("seeds")
    seeds = [2**31 - 2, 2**31 - 1, 0, 1]
    assert end["status"] == "completed"
    assert [each["receipt"]["parameters"]["seed"] for each in stored] == seeds
    assert sorted(call.request.parameters.seed or 0 for call in served["us"].calls) == sorted(seeds)


@pytest.mark.slow
async def test_the_largest_job_is_accepted_and_begins(database_url: str) -> None:
    asked = [{"id": f"q{index}", "text": f"{index} " + "\u00e9" * 370} for index in range(MAX_QUESTIONS)]
    body = json.dumps({"job_id": "largest", "job": one(questions=asked)}, ensure_ascii=False).encode()
    assert 0.95 * MAX_JOB_BYTES < len(body) <= MAX_JOB_BYTES, len(body)
    async with whole(database_url, {"us": FakeEndpoint()}) as stage:
        answer = await stage.submit_raw(body)
        assert isinstance(answer, JobAccepted)
        assert answer.executions == MAX_QUESTIONS
        await stage.until_status("largest", "running")
        await stage.bus.publish(CancelJob(job_id="largest"))
        end = await stage.finished("largest")
        too_long = await stage.submit_raw(body + b" " * MAX_JOB_BYTES)
    assert end["counts"]["completed"] + end["counts"]["cancelled"] + end["not_started"] == MAX_QUESTIONS
    assert isinstance(too_long, JobRejected)
    assert str(MAX_JOB_BYTES) in (too_long.problems[0].allowed or "")


@pytest.mark.slow
async def test_the_largest_batch_is_answered(database_url: str) -> None:
    models = [{"id": f"m{number}", "model": "one"} for number in range(MAX_BATCH_EXECUTIONS // 100)]
    document = one(models=models, samples=100)
    async with whole(database_url, {"us": FakeEndpoint()}) as stage:
        await stage.submit("wide", document)
        end = await stage.finished("wide")
        counted = await row(stage.engine, "SELECT count(*) AS n FROM results.executions WHERE job_id = 'wide'")
        wider = await stage.submit("wider", document | {"models": [*models, {"id": "one"}]})
    assert end["counts"]["completed"] == counted["n"] == MAX_BATCH_EXECUTIONS
    assert isinstance(wider, JobRejected)
    assert str(MAX_BATCH_EXECUTIONS) in (wider.problems[0].allowed or "")
