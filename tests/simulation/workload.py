"""The jobs of one simulated run, drawn from the seed."""

from dataclasses import dataclass
from random import Random
from uuid import UUID

from parallax.contracts.ids import execution_id
from parallax.contracts.job import Barrier, ExecutionRef, JobSpec, Limits, ModelSelection, Question, StopRule
from parallax.contracts.plan import JobPlan, batch_cells, cells_by_question, execution_count

REGIONS = ("us", "eu", "apac")
HEALTHY = "small"
THROTTLED = "throttled"
"""A model that refuses every call for long stretches, see ``tests.simulation.fairness``."""
LEAST_EXECUTIONS = 60


@dataclass(frozen=True, slots=True)
class Planned:
    """One execution as it must happen, computed apart from the dispatcher."""

    job_id: str
    lane: str
    index: int
    region: str


@dataclass(frozen=True, slots=True)
class SimJob:
    """A job, and what its user does with it."""

    job_id: str
    spec: JobSpec
    submit_at_s: float
    cancel_at_s: float | None

    def executions(self) -> dict[UUID, Planned]:
        """Every execution of the job."""
        plan = JobPlan.of(self.spec)
        only = None if self.spec.only is None else cells_by_question(self.spec.only)
        return {
            execution_id(self.job_id, question.id, *cell): Planned(self.job_id, lane, index, cell.region)
            for lane in plan.lanes()
            for index, question in enumerate(self.spec.questions)
            for cell in batch_cells(plan, lane, None if only is None else only.get(question.id, ()))
        }


def draw_jobs(random: Random) -> list[SimJob]:
    """Two jobs or more, at least sixty executions in all."""
    jobs: list[SimJob] = []
    while len(jobs) < 2 or sum(execution_count(job.spec) for job in jobs) < LEAST_EXECUTIONS:
        jobs.append(_draw_job(random, len(jobs)))
    return jobs


def _draw_job(random: Random, number: int) -> SimJob:
    regions = tuple(random.sample(REGIONS, random.randint(1, 3)))
    models = tuple(
        ModelSelection(
            id=f"m{n}",
            model=THROTTLED if random.random() < 0.3 else HEALTHY,
            regions=(random.choice(regions),) if random.random() < 0.3 else None,
        )
        for n in range(random.randint(1, 3))
    )
    spec = JobSpec(
        name=f"job {number}",
        questions=tuple(Question(id=f"q{n}", text=f"question {n}?") for n in range(random.randint(2, 5))),
        models=models,
        regions=regions,
        samples=random.choice((1, 1, 2, 3)),
        barrier=random.choice(tuple(Barrier)),
        limits=Limits(
            attempt_timeout_s=random.choice((10.0, 30.0)),
            max_attempts=random.randint(1, 3),
            batch_deadline_s=random.choice((60.0, 120.0, 240.0)),
            job_deadline_s=30.0 if random.random() < 0.1 else 1800.0,
        ),
        min_success_rate=random.choice((0.0, 0.67, 1.0)),
        stop_when=StopRule(failure_rate=0.5, after_batches=1) if random.random() < 0.15 else None,
    )
    if random.random() < 0.2:
        spec = _retry(random, spec)
    submit_at = random.uniform(0, 40)
    cancelled = random.random() < 0.35
    return SimJob(
        job_id=f"job-{number}",
        spec=spec,
        submit_at_s=submit_at,
        cancel_at_s=max(0.0, submit_at + random.uniform(-10, 60)) if cancelled else None,
    )


def _retry(random: Random, spec: JobSpec) -> JobSpec:
    """The same job, restricted to some of its executions, as a retry asks for."""
    plan = JobPlan.of(spec)
    refs = [
        ExecutionRef(question_id=question.id, model_id=cell.model_id, region=cell.region, sample=cell.sample)
        for question in spec.questions
        for lane in plan.lanes()
        for cell in plan.cells(lane)
    ]
    chosen = random.sample(refs, random.randint(1, len(refs)))
    return spec.model_copy(update={"only": tuple(chosen), "retry_of": "job-origin"})
