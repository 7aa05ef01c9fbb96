"""A job as the dispatcher keeps it: what it was accepted as, and how far it is."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from dispatcher.progress import Job, Phase, Rules, StopRule
from dispatcher.submission import Submission
from dispatcher.tasks import Template
from parallax.catalog import Catalog
from parallax.contracts.job import Barrier, JobSpec
from parallax.contracts.messages import JobAccepted, JobStarted
from parallax.contracts.plan import ALL_REGIONS_LANE, Cell, JobPlan, batch_cells, batch_count, execution_count


@dataclass(frozen=True, slots=True)
class StoredJob:
    """What moving a job needs; its size does not depend on the number of questions."""

    job_id: str
    template: Template
    progress: Job

    def moved(self, progress: Job) -> "StoredJob":
        """The same job, further on."""
        return replace(self, progress=progress)


@dataclass(frozen=True, slots=True)
class ChosenBatch:
    """A batch of a job that asks for a part of its matrix."""

    lane: str
    question_index: int
    cells: tuple[Cell, ...]


def accept(submission: Submission, catalog: Catalog, now: datetime) -> tuple[StoredJob, JobAccepted]:
    """The job as it is first stored, and its announcement."""
    spec = submission.spec
    template = Template.of(spec, catalog)
    accepted = JobAccepted(
        job_id=submission.job_id,
        name=spec.name,
        job=spec.model_dump(mode="json", exclude={"questions", "only"}),
        plan=template.plan,
        questions=len(spec.questions),
        batches=batch_count(spec),
        executions=execution_count(spec),
        accepted_at=now,
        retry_of=spec.retry_of,
    )
    progress = Job.queued(_rules(spec), template.plan.lanes())
    return StoredJob(submission.job_id, template, progress), accepted


def _rules(spec: JobSpec) -> Rules:
    stop = spec.stop_when
    return Rules(
        questions=len(spec.questions),
        executions=execution_count(spec),
        batch_deadline=timedelta(seconds=spec.limits.batch_deadline_s),
        job_deadline=timedelta(seconds=spec.limits.job_deadline_s),
        min_success_rate=spec.min_success_rate,
        stop=None if stop is None else StopRule(stop.failure_rate, stop.after_batches),
    )


def chosen_batches(spec: JobSpec) -> tuple[ChosenBatch, ...]:
    """The batches of a job that asks for a part of its matrix; none for a whole job."""
    if spec.only is None:
        return ()
    plan = JobPlan.of(spec)
    index_of = {question.id: index for index, question in enumerate(spec.questions)}
    chosen: dict[tuple[str, int], list[Cell]] = {}
    for ref in spec.only:
        lane = ALL_REGIONS_LANE if plan.barrier is Barrier.QUESTION else ref.region
        cell = Cell(ref.model_id, ref.region, ref.sample)
        chosen.setdefault((lane, index_of[ref.question_id]), []).append(cell)
    return tuple(
        ChosenBatch(lane, index, batch_cells(plan, lane, cells)) for (lane, index), cells in sorted(chosen.items())
    )


def announcements(job: StoredJob, accepted: JobAccepted) -> tuple[JobAccepted | JobStarted, ...]:
    """What was announced about a job but how it ended."""
    started_at = job.progress.started_at
    if job.progress.phase is Phase.QUEUED or started_at is None:
        return (accepted,)
    return (accepted, JobStarted(job_id=job.job_id, started_at=started_at))
