"""A job as the dispatcher keeps it: what it was accepted as, and how far it is."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from dispatcher.progress import Job, Phase, Rules, StopRule
from dispatcher.submission import Submission
from dispatcher.tasks import Template
from parallax.catalog import Catalog
from parallax.contracts.messages import JobAccepted, JobStarted
from parallax.contracts.submission import CheckedJob


@dataclass(frozen=True, slots=True)
class StoredJob:
    """What moving a job needs; its size does not depend on the number of questions."""

    job_id: str
    template: Template
    progress: Job

    def moved(self, progress: Job) -> "StoredJob":
        """The same job, further on."""
        return replace(self, progress=progress)


def accept(submission: Submission, catalog: Catalog, now: datetime) -> tuple[StoredJob, JobAccepted]:
    """The job as it is first stored, and its announcement."""
    job = submission.job
    template = Template.of(job, catalog)
    accepted = JobAccepted(
        job_id=submission.job_id,
        name=job.head.name,
        job=job.head.model_dump(mode="json"),
        plan=template.plan,
        questions=job.questions,
        batches=job.batches,
        executions=job.executions,
        accepted_at=now,
        retry_of=job.head.retry_of,
    )
    progress = Job.queued(_rules(job), template.plan.lanes())
    return StoredJob(submission.job_id, template, progress), accepted


def _rules(job: CheckedJob) -> Rules:
    head, stop = job.head, job.head.stop_when
    return Rules(
        questions=job.questions,
        executions=job.executions,
        batch_deadline=timedelta(seconds=head.limits.batch_deadline_s),
        job_deadline=timedelta(seconds=head.limits.job_deadline_s),
        min_success_rate=head.min_success_rate,
        stop=None if stop is None else StopRule(stop.failure_rate, stop.after_batches),
    )


def announcements(job: StoredJob, accepted: JobAccepted) -> tuple[JobAccepted | JobStarted, ...]:
    """What was announced about a job but how it ended."""
    started_at = job.progress.started_at
    if job.progress.phase is Phase.QUEUED or started_at is None:
        return (accepted,)
    return (accepted, JobStarted(job_id=job.job_id, started_at=started_at))
