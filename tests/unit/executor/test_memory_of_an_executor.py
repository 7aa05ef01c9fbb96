"""What an executor remembers is bounded: recent facts and cancelled jobs."""

from datetime import UTC, datetime

from executor.cancellations import MAX_JOBS, MAX_REASON_CHARS, Cancellations
from executor.recent import MAX_CHARS, RecentFacts
from parallax.bus.ignored import IGNORED
from parallax.contracts.messages import ExecutionFinished, InspectionFence, JobCancelled, encode
from parallax.contracts.outcomes import ExecutionStatus, Output, Reason
from tests.fakes.executor_stage import task

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def fact(question: str, text: str = "") -> ExecutionFinished:
    of = task(question)
    return ExecutionFinished(
        execution_id=of.execution_id,
        batch=of.batch,
        batch_size=1,
        question_id=question,
        model_id="mock",
        model="mock",
        region="us",
        sample=0,
        status=ExecutionStatus.COMPLETED,
        observed=True,
        output=Output(text=text),
        completed_at=NOW,
    )


def cancelled(job: str, message: str = "enough") -> bytes:
    return encode(JobCancelled(job_id=job, reason=Reason(code="cancelled", message=message), cancelled_at=NOW))


def test_the_oldest_facts_are_forgotten_first() -> None:
    recent = RecentFacts(2)
    facts = [fact(f"q{n}") for n in range(3)]
    for each in facts:
        recent.add(each)
    assert [recent.get(each.execution_id) for each in facts] == [None, facts[1], facts[2]]


def test_long_facts_are_forgotten_sooner() -> None:
    recent = RecentFacts(1000)
    for number in range(5):
        recent.add(fact(f"q{number}", "x" * (MAX_CHARS // 2)))
    assert len(recent) == 2
    recent.add(fact("q4", "short"))
    recent.add(fact("q5", "x" * (MAX_CHARS // 4)))
    assert len(recent) == 3, "a fact that is added again counts once"


def _no_fence(_: InspectionFence) -> None:
    pass


def test_cancelled_jobs_are_known_and_told() -> None:
    told: list[tuple[str, Reason]] = []
    cancellations = Cancellations(lambda job, reason: told.append((job, reason)), _no_fence)
    cancellations.take(cancelled("job-1", "x" * 2000))
    assert "job-1" in cancellations
    assert "job-2" not in cancellations
    assert told == [("job-1", Reason(code="cancelled", message="x" * MAX_REASON_CHARS))]


def test_an_unreadable_entry_hides_nothing() -> None:
    cancellations = Cancellations(lambda _job, _reason: None, _no_fence)
    cancellations.take(b"not a message")
    cancellations.take(cancelled("job-1"))
    assert "job-1" in cancellations


def test_an_entry_of_a_kind_that_a_newer_version_knows_is_counted_and_dropped() -> None:
    cancellations = Cancellations(lambda _job, _reason: None, _no_fence)
    count = IGNORED.labels("cancellations")
    before = count._value.get()
    cancellations.take(b'{"kind": "job_paused", "job_id": "job-1"}')
    cancellations.take(b"not a message")
    assert count._value.get() == before + 1
    assert "job-1" not in cancellations


def test_the_memory_of_cancelled_jobs_is_bounded() -> None:
    cancellations = Cancellations(lambda _job, _reason: None, _no_fence)
    for number in range(MAX_JOBS + 1):
        cancellations.take(cancelled(f"job-{number}"))
    assert "job-0" not in cancellations
    assert f"job-{MAX_JOBS}" in cancellations
