"""What a job consists of."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from parallax.contracts.ids import execution_id
from parallax.contracts.job import Barrier, ExecutionRef, JobSpec, ModelSelection, Question
from parallax.contracts.plan import (
    BatchPlan,
    BatchRef,
    Cell,
    JobPlan,
    batch_cells,
    batch_count,
    cells_by_question,
    execution_count,
)

REGIONS = ("us", "eu", "apac")


def job(
    barrier: Barrier, *, questions: int = 2, samples: int = 1, only: tuple[ExecutionRef, ...] | None = None
) -> JobSpec:
    return JobSpec(
        name="j",
        questions=tuple(Question(id=f"q{n}", text="?") for n in range(questions)),
        models=(ModelSelection(id="a"), ModelSelection(id="b", regions=("eu",))),
        regions=REGIONS,
        samples=samples,
        barrier=barrier,
        only=only,
    )


def test_execution_ids_never_change() -> None:
    assert execution_id("job-1", "q1", "m1", "us", 0) == UUID("3dd0f89f-a317-5544-9869-b5d324baed0b")


@given(st.lists(st.tuples(st.text(), st.text(), st.text(), st.text(), st.integers(0, 9)), unique=True, max_size=20))
def test_different_executions_have_different_ids(coordinates: list[tuple[str, str, str, str, int]]) -> None:
    assert len({execution_id(*c) for c in coordinates}) == len(coordinates)


def test_one_lane_holds_every_cell_with_the_question_barrier() -> None:
    plan = JobPlan.of(job(Barrier.QUESTION))
    assert plan.lanes() == ("all",)
    assert list(plan.cells("all")) == [Cell("a", "us", 0), Cell("a", "eu", 0), Cell("a", "apac", 0), Cell("b", "eu", 0)]


def test_each_region_is_a_lane_with_the_region_barrier() -> None:
    plan = JobPlan.of(job(Barrier.REGION))
    assert plan.lanes() == REGIONS
    assert list(plan.cells("eu")) == [Cell("a", "eu", 0), Cell("b", "eu", 0)]


@given(st.sampled_from(Barrier), st.integers(1, 5), st.integers(1, 4))
def test_lanes_part_the_same_executions(barrier: Barrier, questions: int, samples: int) -> None:
    spec = job(barrier, questions=questions, samples=samples)
    plan = JobPlan.of(spec)
    ids = [
        identifier
        for lane in plan.lanes()
        for index, question in enumerate(spec.questions)
        for identifier in BatchPlan(
            ref=BatchRef(job_id="j", lane=lane, question_index=index),
            question_id=question.id,
            cells=batch_cells(plan, lane, None),
        ).execution_ids()
    ]
    assert len(ids) == len(set(ids)) == execution_count(spec) == questions * samples * 4
    assert batch_count(spec) == questions * len(plan.lanes())


def test_a_retry_has_only_the_executions_it_names() -> None:
    chosen = (
        ExecutionRef(question_id="q1", model_id="a", region="us"),
        ExecutionRef(question_id="q1", model_id="b", region="eu"),
    )
    spec = job(Barrier.REGION, only=chosen)
    plan = JobPlan.of(spec)
    by_question = cells_by_question(chosen)
    assert batch_cells(plan, "us", by_question["q1"]) == (Cell("a", "us", 0),)
    assert batch_cells(plan, "apac", by_question["q1"]) == ()
    assert (execution_count(spec), batch_count(spec)) == (2, 2)
    assert batch_count(job(Barrier.QUESTION, only=chosen)) == 1
