"""What an executor remembers is bounded: recent facts, cancelled jobs, and what it held when a fence was written."""

from datetime import UTC, datetime
from uuid import UUID

from executor.cancellations import MAX_JOBS, MAX_REASON_CHARS, Cancellations
from executor.holdings import ANSWER_S, MAX_FENCES, REMEMBER_S, Holdings
from executor.recent import MAX_CHARS, RecentFacts
from parallax.bus.ignored import IGNORED
from parallax.contracts.messages import ExecutionFinished, InspectionFence, JobCancelled, encode
from parallax.contracts.outcomes import ExecutionStatus, Output, Reason
from parallax.contracts.plan import BatchRef
from tests.fakes.clock import ManualClock
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


def _ignore(_fence: InspectionFence) -> None:
    """For tests of cancellations."""


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


def test_cancelled_jobs_are_known_and_told() -> None:
    told: list[tuple[str, Reason]] = []
    cancellations = Cancellations(lambda job, reason: told.append((job, reason)), _ignore)
    cancellations.take(cancelled("job-1", "x" * 2000))
    assert "job-1" in cancellations
    assert "job-2" not in cancellations
    assert told == [("job-1", Reason(code="cancelled", message="x" * MAX_REASON_CHARS))]


def test_an_unreadable_entry_hides_nothing() -> None:
    cancellations = Cancellations(lambda _job, _reason: None, _ignore)
    cancellations.take(b"not a message")
    cancellations.take(cancelled("job-1"))
    assert "job-1" in cancellations


def test_an_entry_of_a_kind_that_a_newer_version_knows_is_counted_and_dropped() -> None:
    cancellations = Cancellations(lambda _job, _reason: None, _ignore)
    count = IGNORED.labels("cancellations")
    before = count._value.get()
    cancellations.take(b'{"kind": "job_paused", "job_id": "job-1"}')
    cancellations.take(b"not a message")
    assert count._value.get() == before + 1
    assert "job-1" not in cancellations


def test_the_memory_of_cancelled_jobs_is_bounded() -> None:
    cancellations = Cancellations(lambda _job, _reason: None, _ignore)
    for number in range(MAX_JOBS + 1):
        cancellations.take(cancelled(f"job-{number}"))
    assert "job-0" not in cancellations
    assert f"job-{MAX_JOBS}" in cancellations


# --- what it held when a fence was written

BATCH = BatchRef(job_id="job", lane="all", question_index=0)
OTHER = BatchRef(job_id="other", lane="all", question_index=0)
ONE, TWO, THREE = (UUID(int=number) for number in range(1, 4))


def fence(token: str = "t", *regions: str, batch: BatchRef = BATCH) -> InspectionFence:
    return InspectionFence(token=token, regions=regions or ("us",), batches=(batch,))


def answers(holdings: Holdings, *held: UUID) -> dict[str, set[UUID]]:
    return {each.token: set(each.executions) for each in holdings.answers([(one, BATCH) for one in held])}


def test_an_answer_lists_what_is_held_and_what_left_lately() -> None:
    clock, told = ManualClock(), list[bool]()
    holdings = Holdings(clock, "us", lambda: told.append(True))
    holdings.left(ONE, BATCH)
    clock.advance(REMEMBER_S)
    holdings.read(fence())
    holdings.left(THREE, OTHER)
    assert answers(holdings, TWO) == {"t": {ONE, TWO}}
    assert told == [True], "an answer is sent soon"
    holdings.left(TWO, BATCH)
    clock.advance(ANSWER_S)
    assert answers(holdings) == {"t": {ONE, TWO}}, "for as long as the fence is answered"


def test_a_fence_is_answered_for_a_while_only() -> None:
    clock = ManualClock()
    holdings = Holdings(clock, "us", lambda: None)
    holdings.read(fence())
    clock.advance(ANSWER_S + 1)
    assert answers(holdings) == {}


def test_a_fence_of_other_regions_is_not_answered() -> None:
    holdings = Holdings(ManualClock(), "us", lambda: None)
    holdings.read(fence("t", "eu", "apac"))
    assert answers(holdings) == {}


def test_an_executor_that_cannot_remember_enough_does_not_answer() -> None:
    clock = ManualClock()
    holdings = Holdings(clock, "us", lambda: None, most=2)
    for each in (ONE, TWO, THREE):
        holdings.left(each, BATCH)
    clock.advance(1)
    holdings.read(fence("early"))
    assert answers(holdings) == {}, "one is forgotten that left less than three minutes ago"
    clock.advance(REMEMBER_S)
    holdings.read(fence("later"))
    assert answers(holdings) == {"later": {TWO, THREE}}


def test_the_number_of_fences_answered_at_once_is_bounded() -> None:
    holdings = Holdings(ManualClock(), "us", lambda: None)
    for number in range(MAX_FENCES + 1):
        holdings.read(fence(f"t{number}"))
    assert len(answers(holdings)) == MAX_FENCES
    assert "t0" not in answers(holdings)


def test_fences_come_with_the_cancellations() -> None:
    read: list[InspectionFence] = []
    cancellations = Cancellations(lambda _job, _reason: None, read.append)
    cancellations.take(encode(fence()))
    assert read == [fence()]
