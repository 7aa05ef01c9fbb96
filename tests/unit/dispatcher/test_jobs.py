"""What a job becomes when it is accepted, and the batches of one that asks for a part of its matrix."""

import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.jobs import accept
from dispatcher.progress import Phase
from dispatcher.rows import ChosenBatch, chosen_batches
from dispatcher.submission import Submission
from dispatcher.tasks import Template, make_tasks
from parallax.catalog import parse_catalog
from parallax.contracts.job import JobSpec
from parallax.contracts.plan import BatchPlan, BatchRef, Cell, batch_count, execution_count
from parallax.contracts.submission import CheckedJob

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CATALOG = parse_catalog(
    {
        "regions": {
            "us": {"name": "{region}", "endpoint": "openai+http://127.0.0.1:1/v1"},
            "eu": {"name": "the EU", "endpoint": "openai+http://127.0.0.1:1/v1"},
        },
        "models": {"tiny": {"upstream": "tiny", "regions": ["us", "eu"]}},
    },
    source="test",
)


def spec(**changes: Any) -> JobSpec:
    document = {
        "name": "test",
        "questions": [{"id": f"q{index}", "text": "Why?"} for index in range(3)],
        "models": [{"id": "a", "model": "tiny"}, {"id": "b", "model": "tiny", "regions": ["eu"]}],
        "regions": ["us", "eu"],
        "samples": 2,
        **changes,
    }
    return JobSpec.model_validate_json(json.dumps(document))


def test_an_accepted_job_waits_with_its_whole_matrix_planned() -> None:
    job, accepted = accept(Submission.of("job", spec(barrier="region")), CATALOG, NOW)
    assert (accepted.questions, accepted.batches, accepted.executions) == (3, 6, 18)
    assert not {"questions", "only"} & set(accepted.job)
    assert job.progress.phase is Phase.QUEUED
    assert [lane.name for lane in job.progress.lanes] == ["us", "eu"]
    assert job.progress.rules.executions == 18


def test_the_template_keeps_the_names_of_regions_as_they_were() -> None:
    template = Template.of(CheckedJob.of(spec(system_prompt="In {region_name}.")), CATALOG)
    assert dict(template.region_names) == {"us": "{region}", "eu": "the EU"}
    assert Template.model_validate_json(template.model_dump_json()) == template


def test_what_a_region_is_called_is_not_a_template() -> None:
    template = Template.of(CheckedJob.of(spec(system_prompt="In {region_name}.")), CATALOG)
    ref = BatchRef(job_id="job", lane="all", question_index=0)
    batch = BatchPlan(ref=ref, question_id="q0", cells=(Cell("a", "us", 0),))
    (task,) = make_tasks(template, batch, "A {question}?", published_at=NOW, deadline_at=NOW)
    assert [message.content for message in task.messages] == ["In {region}.", "A {question}?"]


def test_a_job_without_a_system_prompt_and_seed_sends_neither() -> None:
    template = Template.of(CheckedJob.of(spec()), CATALOG)
    ref = BatchRef(job_id="job", lane="all", question_index=0)
    batch = BatchPlan(ref=ref, question_id="q0", cells=(Cell("a", "us", 1),))
    (task,) = make_tasks(template, batch, "Why?", published_at=NOW, deadline_at=NOW)
    assert [message.role for message in task.messages] == ["user"]
    assert task.parameters.seed is None


def test_a_whole_job_chooses_nothing() -> None:
    assert chosen_batches(spec()) == ()


def test_chosen_cells_are_grouped_by_batch_in_the_order_of_the_plan() -> None:
    only = [
        {"question_id": "q2", "model_id": "b", "region": "eu", "sample": 1},
        {"question_id": "q2", "model_id": "a", "region": "eu", "sample": 0},
        {"question_id": "q0", "model_id": "a", "region": "us", "sample": 1},
    ]
    assert chosen_batches(spec(only=only)) == (
        ChosenBatch("all", 0, (Cell("a", "us", 1),)),
        ChosenBatch("all", 2, (Cell("a", "eu", 0), Cell("b", "eu", 1))),
    )
    assert chosen_batches(spec(only=only, barrier="region")) == (
        ChosenBatch("eu", 2, (Cell("a", "eu", 0), Cell("b", "eu", 1))),
        ChosenBatch("us", 0, (Cell("a", "us", 1),)),
    )


CELLS = [("a", "us", 0), ("a", "us", 1), ("a", "eu", 0), ("a", "eu", 1), ("b", "eu", 0), ("b", "eu", 1)]
refs = st.tuples(st.sampled_from(["q0", "q1", "q2"]), st.sampled_from(CELLS)).map(
    lambda ref: {"question_id": ref[0], "model_id": ref[1][0], "region": ref[1][1], "sample": ref[1][2]}
)


@given(
    only=st.lists(refs, min_size=1, max_size=18, unique_by=lambda ref: tuple(ref.values())),
    barrier=st.sampled_from(["question", "region"]),
)
def test_no_chosen_execution_is_lost_or_added(only: list[dict[str, Any]], barrier: str) -> None:
    asked = spec(only=only, barrier=barrier)
    chosen = chosen_batches(asked)
    made = {(f"q{batch.question_index}", *cell) for batch in chosen for cell in batch.cells}
    assert made == {tuple(ref.values()) for ref in only}
    assert len(chosen) == batch_count(asked)
    assert sum(len(batch.cells) for batch in chosen) == execution_count(asked)
