"""Which executions a job consists of: fixed at acceptance, computed the same way by every service.

A *lane* is an ordered walk through the questions; a *batch* is one question in one lane; a *cell* is one
(model, region, sample) of a batch.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated, Final, NamedTuple, Self
from uuid import UUID

from pydantic import Field

from parallax.contracts.ids import execution_id
from parallax.contracts.job import MAX_QUESTIONS, Barrier, ExecutionRef, JobHead, JobSpec
from parallax.contracts.model import JobId, Name, RegionName, Strict

ALL_REGIONS_LANE: Final = "all"
"""Name of the only lane of a job with ``barrier: question``."""


class Cell(NamedTuple):
    """One (model, region, sample) of a batch."""

    model_id: str
    region: str
    sample: int


class Demand(NamedTuple):
    """What a job asks of one model of the catalog in one region."""

    model: str
    """Its name in the catalog, whatever the job calls it."""
    region: str
    batches: int
    calls: int


class PlannedModel(Strict):
    """The regions one model of the job runs in."""

    model_id: Name
    regions: tuple[RegionName, ...]


class JobPlan(Strict):
    """The matrix of a job without its questions: small, whatever the number of questions."""

    barrier: Barrier
    samples: int
    models: tuple[PlannedModel, ...]

    @classmethod
    def of(cls, job: JobHead) -> Self:
        """The plan of a valid job."""
        models = tuple(PlannedModel(model_id=m.id, regions=m.regions or job.regions) for m in job.models)
        return cls(barrier=job.barrier, samples=job.samples, models=models)

    def lanes(self) -> tuple[str, ...]:
        """The lanes of the job, in the order in which its regions first appear."""
        if self.barrier is Barrier.QUESTION:
            return (ALL_REGIONS_LANE,)
        return tuple(dict.fromkeys(region for model in self.models for region in model.regions))

    def cells(self, lane: str) -> Iterator[Cell]:
        """Every cell of a batch of this lane: by model, then region, then sample."""
        for model in self.models:
            for region in model.regions:
                if lane in (ALL_REGIONS_LANE, region):
                    yield from (Cell(model.model_id, region, sample) for sample in range(self.samples))


class BatchRef(Strict):
    """Names one batch: (job, lane, question index)."""

    job_id: JobId
    lane: Name
    question_index: Annotated[int, Field(ge=0, lt=MAX_QUESTIONS)]


class BatchPlan(Strict):
    """One batch and exactly the executions it consists of."""

    ref: BatchRef
    question_id: Name
    cells: tuple[Cell, ...]

    def execution_ids(self) -> dict[UUID, Cell]:
        """The id of every execution of the batch, in the order of its cells."""
        return {execution_id(self.ref.job_id, self.question_id, *cell): cell for cell in self.cells}


def batch_cells(plan: JobPlan, lane: str, only: Iterable[Cell] | None) -> tuple[Cell, ...]:
    """The cells of one question in one lane; ``only`` restricts a retry to a part of the matrix."""
    cells = plan.cells(lane)
    if only is None:
        return tuple(cells)
    chosen = frozenset(only)
    return tuple(cell for cell in cells if cell in chosen)


def cells_by_question(only: Iterable[ExecutionRef]) -> dict[str, tuple[Cell, ...]]:
    """The chosen cells of each question that a retry names."""
    chosen: dict[str, list[Cell]] = {}
    for ref in only:
        chosen.setdefault(ref.question_id, []).append(Cell(ref.model_id, ref.region, ref.sample))
    return {question: tuple(cells) for question, cells in chosen.items()}


def execution_count(spec: JobSpec) -> int:
    """How many executions the job consists of."""
    if spec.only is not None:
        return len(spec.only)
    plan = JobPlan.of(spec)
    return len(spec.questions) * sum(1 for lane in plan.lanes() for _ in plan.cells(lane))


def batch_count(spec: JobSpec) -> int:
    """How many batches the job consists of; a retry's empty batches are not counted."""
    lanes = JobPlan.of(spec).lanes()
    if spec.only is None:
        return len(spec.questions) * len(lanes)
    if spec.barrier is Barrier.QUESTION:
        return len({ref.question_id for ref in spec.only})
    return len({(ref.question_id, ref.region) for ref in spec.only})


def demands(spec: JobSpec) -> list[Demand]:
    """The executions of a job by (model of the catalog, region), and the batches that they come in."""
    names = {selection.id: selection.catalog_name for selection in spec.models}
    calls: Counter[tuple[str, str]] = Counter()
    batches: Counter[tuple[str, str]] = Counter()
    if spec.only is not None:
        calls.update((names[ref.model_id], ref.region) for ref in spec.only)
        asked = {(names[ref.model_id], ref.region, ref.question_id) for ref in spec.only}
        batches.update((model, region) for model, region, _ in asked)
    else:
        for selection in spec.models:
            for region in selection.regions or spec.regions:
                calls[(selection.catalog_name, region)] += len(spec.questions) * spec.samples
                batches[(selection.catalog_name, region)] = len(spec.questions)
    return [Demand(model, region, batches[(model, region)], count) for (model, region), count in calls.items()]
