"""The comparison over HTTP: from rows in the ledger to a verdict, and what keeps it honest while things change."""

import csv
import io
from collections.abc import AsyncIterator
from typing import Any

import pytest

from parallax.contracts.comparison import Comparison, ComparisonProgress, Verdict
from parallax.contracts.outcomes import ExecutionStatus
from parallax.contracts.plan import Cell
from parallax.contracts.rates import Outcome
from results.api.comparing import MAX_PAIRS, Asked
from results.api.comparisons import Comparisons
from results.api.queries import outcomes
from results.api.queries.reading import reading
from results.comparison.outcomes import RULES_VERSION, Ended, outcome_of
from tests.fakes import facts
from tests.integration.api_stage import Stage, staged
from tests.integration.comparison_stage import answered, cricket_in_apac, document, ordinary, with_output


@pytest.fixture
async def stage(database_url: str) -> AsyncIterator[Stage]:
    async with staged(database_url) as running:
        yield running


async def compared(stage: Stage, query: str = "", job_id: str = "job-1") -> Comparison:
    response = await stage.http.get(f"/v1/jobs/{job_id}/comparison{query}", timeout=120)
    assert response.status_code == 200, response.text
    return Comparison.model_validate_json(response.content)


async def refused(stage: Stage, path: str) -> tuple[int, str]:
    response = await stage.http.get(path)
    return response.status_code, response.json()["detail"]


def verdicts(found: Comparison) -> dict[str, Verdict | None]:
    return {f"{pair.a.region}-{pair.b.region}": pair.verdict for pair in found.pairs}


async def test_regions_that_differ_are_found_and_those_that_do_not_are_not(stage: Stage) -> None:
    await answered(stage, "job-1", document())
    found = await compared(stage)
    assert verdicts(found) == {
        "us-eu": Verdict.NO_DIFFERENCE_FOUND, "us-apac": Verdict.DIFFERS, "eu-apac": Verdict.DIFFERS,
    }  # fmt: skip
    (different,) = [q for q in found.pairs[1].questions if q.verdict is Verdict.DIFFERS]
    assert different.question_id == "question-0"
    assert {word.word for word in different.words_b} == {"cricket", "curry", "chutney"}
    assert (found.questions, found.answers, found.final) == (4, 96, True)
    assert (found.rules_version, found.corrections) == (RULES_VERSION, 0)
    assert (await compared(stage)) == found


async def test_filters_make_a_comparison_of_its_own(stage: Stage) -> None:
    await answered(stage, "job-1", document())
    found = await compared(stage, "?question=question-2&question=question-3&against=us&region=us&region=apac")
    assert verdicts(found) == {"us-apac": Verdict.NO_DIFFERENCE_FOUND}
    assert found.questions == 2
    assert (await compared(stage, "?across=model")).headlines == ("There is no pair to compare here.",)


async def test_a_table_has_a_row_per_pair_and_question(stage: Stage) -> None:
    await answered(stage, "job-1", document(), lambda draw, _, cell: ordinary(draw, f"=1+{cell.sample}"))
    response = await stage.http.get("/v1/jobs/job-1/comparison?format=csv")
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert len(rows) == 12
    assert {row["pair_verdict"] for row in rows} == {"no_difference_found"}
    assert rows[0]["job_a"] == "job-1"


async def test_while_a_job_runs_complete_questions_are_told_in_sizes(stage: Stage) -> None:
    await answered(stage, "job-1", document(), opened=2)
    spec_batch = await stage.open("job-1", await stage.accept("job-1", document()), 2)
    await stage.store([facts.observed(spec_batch, spec_batch.cells[0])])
    found = await compared(stage)
    assert (found.final, found.questions) == (False, 2)
    assert set(verdicts(found).values()) == {None}
    assert all(pair.separation is not None and pair.p is None for pair in found.pairs)


async def test_two_jobs_are_matched_by_their_prompts(stage: Stage) -> None:
    await answered(stage, "job-1", document())
    await answered(stage, "job-2", document(5), lambda draw, _, __: ordinary(draw))
    await answered(stage, "job-3", document(), lambda draw, _, __: ordinary(draw), prompt="11")
    found = await compared(stage, "?with=job-2")
    assert {(pair.a.job_id, pair.b.job_id, pair.a.region, pair.verdict) for pair in found.pairs} == {
        ("job-1", "job-2", "us", Verdict.NO_DIFFERENCE_FOUND),
        ("job-1", "job-2", "eu", Verdict.NO_DIFFERENCE_FOUND),
        ("job-1", "job-2", "apac", Verdict.DIFFERS),
    }
    assert [(one.job_id, one.name, one.reason) for one in found.unmatched] == [
        ("job-2", "question-4", "the other job did not ask it")
    ]
    other = await compared(stage, "?with=job-3")
    assert {pair.verdict for pair in other.pairs} == {Verdict.CANNOT_TELL}, "other prompts are not compared"
    assert {one.reason for one in other.unmatched} == {"the prompt differs"}
    across = await compared(stage, "?with=job-3&across=prompt")
    assert {pair.a.region for pair in across.pairs if pair.verdict is Verdict.DIFFERS} == {"apac"}


async def test_jobs_that_ask_in_different_ways_are_told_so(stage: Stage) -> None:
    await answered(stage, "job-1", document(1, parameters={"temperature": 0.7}))
    await answered(stage, "job-2", document(1, parameters={"temperature": 0.3, "seed": 4}))
    found = await compared(stage, "?with=job-2")
    assert found.warnings[0] == "model-0: the jobs ask in different ways: temperature 0.7 against 0.3."


async def test_a_repeat_under_a_second_id_is_a_control(stage: Stage) -> None:
    models = [
        {"id": "model-0", "model": "smollm2-135m", "parameters": {"seed": 1}},
        {"id": "model-again", "model": "smollm2-135m", "parameters": {"seed": 900}},
        {"id": "model-cool", "model": "smollm2-135m", "parameters": {"temperature": 0.1}},
    ]
    await answered(stage, "job-1", document(2, models=models))
    found = await compared(stage)
    assert {(pair.a.model_id, pair.b.model_id) for pair in found.controls} == {("model-0", "model-again")}
    assert len(found.controls) == 3
    assert found.headlines[0].startswith("Controls: 3 repeats of the same model, no difference found")
    assert len(found.pairs) == 9


async def test_the_answers_of_retries_are_compared(stage: Stage) -> None:
    def failing(draw: Any, index: int, cell: Cell) -> str | None:
        return None if cell.region == "apac" else cricket_in_apac(draw, index, cell)

    await answered(stage, "job-1", document(), failing)
    assert (await compared(stage)).pairs[1].verdict is Verdict.CANNOT_TELL
    await answered(stage, "job-2", document(retry_of="job-1"))
    found = await compared(stage)
    assert found.pairs[1].verdict is Verdict.DIFFERS
    assert {cell.job_id for cell in found.cells} == {"job-1"}


async def test_what_cannot_be_compared_is_said(stage: Stage) -> None:
    await answered(stage, "job-1", document(1))
    path = "/v1/jobs/job-1/comparison"
    assert (await refused(stage, "/v1/jobs/none/comparison"))[0] == 404
    assert (await refused(stage, f"{path}?with=none"))[0] == 404
    for query in ("across=job", "with=job-1", "against=mars", "question=none", "with=job-2&across=region"):
        assert (await refused(stage, f"{path}?{query}"))[0] == 422, query
    many = {"models": [{"id": f"model-{n}", "model": "smollm2-135m"} for n in range(70)]}
    await answered(stage, "job-9", document(1, samples=1, **many))
    status, detail = await refused(stage, "/v1/jobs/job-9/comparison")
    assert status == 413
    assert f"more than {MAX_PAIRS}" in detail
    assert "`model`" in detail


async def test_a_long_comparison_tells_how_far_it_is(stage: Stage) -> None:
    await answered(stage, "job-1", document())
    impatient = Comparisons(stage.engine, patience_s=0)
    found = await impatient.of(Asked("job-1"))
    assert found == ComparisonProgress(job_id="job-1", questions_done=0, questions=4)
    while isinstance(found, ComparisonProgress):
        found = await impatient.of(Asked("job-1"))
    assert found == await compared(stage)


async def test_one_computation_serves_all_who_ask_and_is_kept(stage: Stage) -> None:
    await answered(stage, "job-1", document(1))
    patient = Comparisons(stage.engine)
    first = await patient.of(Asked("job-1"))
    assert await patient.of(Asked("job-1")) is first
    assert await patient.of(Asked("job-1", against="us")) is not first


HARD_CASES = [
    Ended(completed=True, text="Tea", finish_reason="stop"),
    Ended(completed=True, text="Tea", finish_reason="length"),
    Ended(completed=True, text="I\u2019m sorry, but I can\u2019t help with that.", finish_reason="stop"),
    Ended(completed=True, text="As an AI language model, I don't have personal opinions", finish_reason="length"),
    Ended(completed=True, text="I'm sorry to hear that.", finish_reason="stop"),
    Ended(completed=True, text="Hawaii cannot provide it.", finish_reason=None),
    Ended(completed=True, text="x" * 299 + " I must decline", finish_reason="stop"),
    Ended(completed=True, text="Well.\nI AM UNABLE TO ANSWER", finish_reason="stop"),
    Ended(completed=True, text=" \n\t", finish_reason="stop"),
    Ended(completed=True, text="", refusal="No", finish_reason="stop"),
    Ended(completed=True, text="Te", refusal="", finish_reason="Content_Filter"),
]


async def test_the_rules_in_sql_are_the_rules(stage: Stage) -> None:
    spec = await stage.accept("job-1", document(1, samples=len(HARD_CASES), regions=["us"]))
    batch = await stage.open("job-1", spec, 0)
    cases = dict(zip(batch.cells, HARD_CASES, strict=True))
    made = [
        with_output(facts.observed(batch, cell), case.text, case.refusal, case.finish_reason)
        for cell, case in cases.items()
    ]
    await stage.store(made)
    async with reading(stage.engine) as connection:
        for fact, case in zip(made, HARD_CASES, strict=True):
            found = await outcomes.by_rules(connection, "job-1", fact.execution_id)
            assert found is not None
            assert found[1] is outcome_of(case), case
    summary = (await stage.http.get("/v1/jobs/job-1/summary")).json()
    counted = {outcome: [outcome_of(case) for case in HARD_CASES].count(outcome) for outcome in Outcome}
    assert {outcome: summary["rows"][0]["outcomes"][outcome] for outcome in Outcome} == counted
    assert summary["rows"][0]["outcomes"]["refused"]["count"] == 5
    assert 0 < summary["rows"][0]["outcomes"]["refused"]["low"] < 5 / 11
    assert summary["rules_version"] == RULES_VERSION


async def test_an_outcome_decided_by_hand_counts_everywhere(stage: Stage) -> None:
    await answered(stage, "job-1", document(1))
    before = await compared(stage)
    item = (await stage.http.get("/v1/jobs/job-1/executions?region=us")).json()["items"][0]
    path = f"/v1/jobs/job-1/executions/{item['id']}/outcome"
    told = await stage.http.post(path, json={"outcome": "refused_in_words", "note": "evades"})
    assert told.status_code == 201, told.text
    assert {name: told.json()[name] for name in ("by_rules", "author", "rules_version", "note")} == {
        "by_rules": "answered", "author": "anonymous", "rules_version": RULES_VERSION, "note": "evades",
    }  # fmt: skip
    after = await compared(stage)
    assert (after.corrections, before.cells[0].outcomes.refused.count) == (1, 0)
    assert after.cells[0].outcomes.refused.count == 1
    row = (await stage.http.get("/v1/jobs/job-1/summary")).json()["rows"]
    assert sum(each["outcomes"]["refused_in_words"] for each in row) == 1
    await stage.http.post(path, json={"outcome": None})
    assert (await compared(stage)).cells[0].outcomes.refused.count == 0
    listed = (await stage.http.get("/v1/jobs/job-1/judgements")).json()["items"]
    assert [each["outcome"] for each in listed] == [None, "refused_in_words"]


async def test_what_cannot_be_judged(stage: Stage) -> None:
    spec = await stage.accept("job-1", document(1))
    batch = await stage.open("job-1", spec, 0)
    failed = facts.ended(batch, batch.cells[0], ExecutionStatus.FAILED)
    await stage.store([failed])
    path = f"/v1/jobs/job-1/executions/{failed.execution_id}/outcome"
    assert (await stage.http.post(path, json={"outcome": "answered"})).status_code == 409
    assert (await stage.http.post(path, json={"outcome": "good"})).status_code == 422
    assert (await stage.http.post(path)).status_code == 415
    missing = f"/v1/jobs/job-1/executions/{facts.observed(batch, batch.cells[1]).execution_id}/outcome"
    assert (await stage.http.post(missing, json={"outcome": "answered"})).status_code == 404
