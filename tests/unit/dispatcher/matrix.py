"""Small jobs for tests of the progress core: which batches exist, and what follows which."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from dispatcher.progress import BatchCompleted, Job, Rules, Start, StopRule, Tally, Upcoming

T0 = datetime(2026, 1, 1, tzinfo=UTC)
BATCH_DEADLINE = timedelta(seconds=10)
JOB_DEADLINE = timedelta(seconds=20)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A job by the size of every batch: ``sizes[lane][index]``, 0 where a question has no executions."""

    sizes: dict[str, tuple[int, ...]]
    min_success_rate: float = 0.67
    stop: StopRule | None = None
    batch_deadline: timedelta = BATCH_DEADLINE
    job_deadline: timedelta = JOB_DEADLINE

    @property
    def rules(self) -> Rules:
        """The rules of this job."""
        return Rules(
            questions=max(map(len, self.sizes.values())),
            executions=sum(map(sum, self.sizes.values())),
            batch_deadline=self.batch_deadline,
            job_deadline=self.job_deadline,
            min_success_rate=self.min_success_rate,
            stop=self.stop,
        )

    def job(self) -> Job:
        """The job before its start."""
        return Job.queued(self.rules, tuple(self.sizes))

    def upcoming(self, lane: str, after: int) -> Upcoming | None:
        """The next batch that has executions."""
        return next(
            (Upcoming(index, size) for index, size in enumerate(self.sizes[lane]) if index > after and size), None
        )

    def start(self) -> Start:
        """The start of this job."""
        return Start(tuple((lane, self.upcoming(lane, -1)) for lane in self.sizes))

    def completed(self, lane: str, index: int, *, failed: int = 0, timed_out: int = 0) -> BatchCompleted:
        """The completion of a batch, so many of its executions failed or out of time."""
        tally = Tally(self.sizes[lane][index] - failed - timed_out, failed, timed_out)
        return BatchCompleted(lane, index, tally, self.upcoming(lane, index))


def at(seconds: float) -> datetime:
    """A moment of the tests' time."""
    return T0 + timedelta(seconds=seconds)
