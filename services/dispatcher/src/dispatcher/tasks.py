"""What an executor is told to do: tasks, made from a job's template and one question."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Annotated, Final, Self

from pydantic import Field

from parallax.catalog import Catalog
from parallax.contracts.ids import execution_id
from parallax.contracts.job import Limits, ModelSelection, Parameters
from parallax.contracts.messages import ExecutionTask
from parallax.contracts.model import RegionName, Strict
from parallax.contracts.outcomes import ChatMessage
from parallax.contracts.plan import BatchPlan, Cell, JobPlan
from parallax.contracts.submission import CheckedJob

_SEEDS: Final = 2**31
"""Seeds wrap around, so that every sample of a job with the largest seed still has a valid one."""


class Template(Strict):
    """All that tasks are made from, save the question; fixed when the job is accepted."""

    system_prompt: str | None
    parameters: Parameters
    limits: Limits
    models: tuple[ModelSelection, ...]
    plan: JobPlan
    region_names: Annotated[Mapping[RegionName, str], Field(min_length=1)]
    questions: int
    partial: bool
    """Whether the job asks for a part of its matrix only, so that batches differ in size."""

    @classmethod
    def of(cls, job: CheckedJob, catalog: Catalog) -> Self:
        """The template of a job that was checked against the catalog."""
        head, plan = job.head, JobPlan.of(job.head)
        regions = {region for model in plan.models for region in model.regions}
        return cls(
            system_prompt=head.system_prompt,
            parameters=head.parameters,
            limits=head.limits,
            models=head.models,
            plan=plan,
            region_names={region: catalog.regions[region].name for region in sorted(regions)},
            questions=job.questions,
            partial=job.partial,
        )


def make_tasks(
    template: Template,
    batch: BatchPlan,
    question: str,
    *,
    published_at: datetime,
    deadline_at: datetime,
    cells: Iterable[Cell] | None = None,
) -> Iterator[ExecutionTask]:
    """The tasks of a batch, or of some of its cells; repeating it makes the same ids."""
    models = {model.id: model for model in template.models}
    parameters = {model.id: template.parameters.merged_under(model.parameters) for model in template.models}
    for cell in batch.cells if cells is None else cells:
        yield ExecutionTask(
            execution_id=execution_id(batch.ref.job_id, batch.question_id, *cell),
            batch=batch.ref,
            batch_size=len(batch.cells),
            question_id=batch.question_id,
            model_id=cell.model_id,
            model=models[cell.model_id].catalog_name,
            region=cell.region,
            sample=cell.sample,
            messages=_prompt(template, batch, models[cell.model_id], cell, question),
            parameters=_of_sample(parameters[cell.model_id], cell.sample),
            limits=template.limits,
            published_at=published_at,
            deadline_at=deadline_at,
        )


def _prompt(
    template: Template, batch: BatchPlan, model: ModelSelection, cell: Cell, question: str
) -> tuple[ChatMessage, ...]:
    asked = ChatMessage(role="user", content=question)
    if template.system_prompt is None:
        return (asked,)
    # Intake lets only these names through, without attributes, indexes or format specifications.
    system = template.system_prompt.format(
        region=cell.region,
        region_name=template.region_names[cell.region],
        model=model.catalog_name,
        question_id=batch.question_id,
    )
    return (ChatMessage(role="system", content=system), asked)


def _of_sample(parameters: Parameters, sample: int) -> Parameters:
    if parameters.seed is None:
        return parameters
    return parameters.model_copy(update={"seed": (parameters.seed + sample) % _SEEDS})
