"""Each row of the transition table, by its effects."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from dispatcher.progress import (
    LEASE,
    AbortAnnounced,
    AnnounceAbort,
    AnnounceStart,
    Batch,
    BatchCompleted,
    Cancel,
    CloseBatch,
    Closing,
    Cut,
    Event,
    Finish,
    GiveUp,
    ImpossibleEventError,
    Job,
    OpenBatch,
    Outcome,
    Phase,
    Published,
    ReportBatch,
    Start,
    StopRule,
    Tally,
    Tick,
    Upcoming,
    step,
)
from tests.unit.dispatcher.matrix import T0, Matrix, at

ONE_LANE = Matrix({"all": (6, 6, 6)})
TWO_LANES = Matrix({"us": (2, 2), "eu": (2, 2)})
NEVER = at(-1)
"""``asked_before`` of a tick that asks about nothing."""
CANCELLED = Closing(Cut.CANCELLED, "cancelled", "enough")


def started(matrix: Matrix) -> Job:
    job, _ = step(matrix.job(), matrix.start(), T0)
    return job


def published(matrix: Matrix) -> Job:
    """A started job whose first batches are published."""
    job = started(matrix)
    marks = tuple((lane.name, batch.index, T0 + LEASE) for lane, batch in job.open_lanes)
    job, effects = step(job, Published(marks), T0)
    assert effects == ()
    return job


def opens(lane: str, index: int, opened_at: datetime, deadline: datetime) -> OpenBatch:
    return OpenBatch(lane, index, opened_at, deadline, opened_at + LEASE)


def test_a_start_opens_the_first_batch_of_every_lane() -> None:
    job, effects = step(TWO_LANES.job(), TWO_LANES.start(), T0)
    assert job.phase is Phase.RUNNING
    assert effects == (
        AnnounceStart(T0),
        opens("us", 0, T0, at(10)),
        opens("eu", 0, T0, at(10)),
    )


def test_a_lane_without_executions_is_passed_over() -> None:
    matrix = Matrix({"us": (0, 0), "eu": (0, 1)})
    _, effects = step(matrix.job(), matrix.start(), T0)
    assert effects == (AnnounceStart(T0), opens("eu", 1, T0, at(10)))


def test_a_completed_batch_opens_the_next_one() -> None:
    job, effects = step(started(ONE_LANE), ONE_LANE.completed("all", 0), at(3))
    assert effects == (
        ReportBatch("all", 0, Tally(6), T0, None),
        opens("all", 1, at(3), at(13)),
    )
    assert job.open_batch("all") == Batch(1, 6, at(3), at(13), at(3), opening_until=at(33))


def test_a_question_without_executions_is_passed_over_without_a_message() -> None:
    matrix = Matrix({"all": (1, 0, 0, 1)})
    _, effects = step(started(matrix), matrix.completed("all", 0), at(1))
    assert [effect for effect in effects if isinstance(effect, OpenBatch)] == [opens("all", 3, at(1), at(11))]


def test_lanes_move_independently() -> None:
    job, _ = step(started(TWO_LANES), TWO_LANES.completed("us", 0), at(1))
    job, effects = step(job, TWO_LANES.completed("us", 1), at(2))
    assert effects == (ReportBatch("us", 1, Tally(2), at(1), None),)
    assert job.phase is Phase.RUNNING
    assert job.open_batch("eu") == Batch(0, 2, T0, at(10), T0, opening_until=T0 + LEASE)


def test_a_batch_never_outlives_the_job() -> None:
    _, effects = step(started(ONE_LANE), ONE_LANE.completed("all", 0), at(15))
    assert opens("all", 1, at(15), at(20)) in effects


def finish_of(matrix: Matrix, *completions: BatchCompleted) -> Finish:
    job = started(matrix)
    for completion in completions[:-1]:
        job, _ = step(job, completion, at(1))
    _, effects = step(job, completions[-1], at(2))
    finish = effects[-1]
    assert isinstance(finish, Finish)
    return finish


def test_the_last_batch_finishes_the_job() -> None:
    matrix = Matrix({"all": (3, 3)})
    assert finish_of(matrix, matrix.completed("all", 0), matrix.completed("all", 1, failed=1)) == Finish(
        Outcome.COMPLETED, "all_batches_completed", "5 of 6 executions completed", Tally(5, 1), 0
    )


@pytest.mark.parametrize(("failed", "outcome"), [(2, Outcome.COMPLETED), (3, Outcome.FAILED)])
def test_too_many_failures_make_a_failed_job(failed: int, outcome: Outcome) -> None:
    matrix = Matrix({"all": (6,)}, min_success_rate=4 / 6)
    finish = finish_of(matrix, matrix.completed("all", 0, failed=failed))
    assert finish.outcome is outcome
    assert finish.code == ("all_batches_completed" if outcome is Outcome.COMPLETED else "below_min_success_rate")


def test_a_cancelled_job_ends_when_its_open_batches_are_closed() -> None:
    job, effects = step(started(TWO_LANES), Cancel("enough"), at(1))
    assert job.phase is Phase.ENDING
    assert effects == (
        AnnounceAbort("cancelled", "enough"),
        CloseBatch("us", 0, CANCELLED),
        CloseBatch("eu", 0, CANCELLED),
    )
    job, effects = step(job, BatchCompleted("us", 0, Tally(1, cancelled=1), Upcoming(1, 2)), at(2))
    assert effects == (ReportBatch("us", 0, Tally(1, cancelled=1), T0, CANCELLED),)
    job, effects = step(job, BatchCompleted("eu", 0, Tally(cancelled=2), Upcoming(1, 2)), at(2))
    assert effects == (
        ReportBatch("eu", 0, Tally(cancelled=2), T0, CANCELLED),
        Finish(Outcome.CANCELLED, "cancelled", "enough", Tally(1, cancelled=3), 4),
    )


def test_a_job_cancelled_while_it_waits_ends_at_once() -> None:
    job, effects = step(ONE_LANE.job(), Cancel("enough"), T0)
    assert job.phase is Phase.FINISHED
    assert effects == (
        AnnounceAbort("cancelled", "enough"),
        Finish(Outcome.CANCELLED, "cancelled", "enough", Tally(), 18),
    )


def test_a_job_that_cannot_be_published_fails() -> None:
    job, effects = step(ONE_LANE.job(), GiveUp("no queue"), T0)
    assert job.phase is Phase.FINISHED
    assert effects == (
        AnnounceAbort("undeliverable", "no queue"),
        Finish(Outcome.FAILED, "undeliverable", "no queue", Tally(), 18),
    )


def test_a_batch_out_of_time_is_closed_alone_and_the_lane_goes_on() -> None:
    job, effects = step(started(TWO_LANES), Tick(NEVER), at(10))
    us, eu = effects
    assert isinstance(us, CloseBatch)
    assert isinstance(eu, CloseBatch)
    assert (us.closing.cut, us.closing.code) == (Cut.TIMED_OUT, "batch_deadline")
    assert job.phase is Phase.RUNNING
    _, effects = step(job, TWO_LANES.completed("us", 0, timed_out=2), at(11))
    assert effects[1] == opens("us", 1, at(11), at(20))


def test_a_job_out_of_time_ends() -> None:
    job, effects = step(started(TWO_LANES), Tick(NEVER), at(20))
    assert job.phase is Phase.ENDING
    assert isinstance(effects[0], AnnounceAbort)
    assert effects[0].code == "job_deadline"
    assert [(e.lane, e.closing.cut) for e in effects[1:] if isinstance(e, CloseBatch)] == [
        ("us", Cut.TIMED_OUT),
        ("eu", Cut.TIMED_OUT),
    ]
    job, _ = step(job, TWO_LANES.completed("us", 0, timed_out=2), at(21))
    _, effects = step(job, TWO_LANES.completed("eu", 0, timed_out=2), at(21))
    assert isinstance(effects[-1], Finish)
    assert (effects[-1].outcome, effects[-1].code, effects[-1].not_started) == (Outcome.FAILED, "job_deadline", 4)


def test_no_deadline_runs_while_a_job_waits() -> None:
    assert step(ONE_LANE.job(), Tick(at(10_000)), at(10_000)) == (ONE_LANE.job(), ())


def test_a_hopeless_job_is_stopped() -> None:
    matrix = Matrix({"all": (4, 4, 4)}, stop=StopRule(failure_rate=0.5, after_batches=2))
    job, effects = step(started(matrix), matrix.completed("all", 0, failed=4), at(1))
    assert isinstance(effects[-1], OpenBatch), "one batch is not enough to judge"
    job, effects = step(job, matrix.completed("all", 1), at(2))
    assert job.phase is Phase.FINISHED
    assert isinstance(effects[-2], AnnounceAbort)
    assert isinstance(effects[-1], Finish)
    assert (effects[-1].outcome, effects[-1].code) == (Outcome.FAILED, "stopped_early")
    assert effects[-1].not_started == 4


def test_a_job_below_the_failure_rate_is_not_stopped() -> None:
    matrix = Matrix({"all": (4, 4, 4)}, stop=StopRule(failure_rate=0.5, after_batches=1))
    job, effects = step(started(matrix), matrix.completed("all", 0, failed=1), at(1))
    assert job.phase is Phase.RUNNING
    assert isinstance(effects[-1], OpenBatch)


def test_an_early_stop_closes_the_other_lanes() -> None:
    matrix = replace(TWO_LANES, stop=StopRule(failure_rate=1, after_batches=1))
    job, effects = step(started(matrix), matrix.completed("us", 0, failed=2), at(1))
    assert job.phase is Phase.ENDING
    assert isinstance(effects[-1], CloseBatch)
    assert (effects[-1].lane, effects[-1].closing.code) == ("eu", "stopped_early")


def test_a_closing_that_was_not_answered_is_sent_again() -> None:
    job, _ = step(started(ONE_LANE), Cancel("enough"), at(1))
    _, effects = step(job, Tick(asked_before=at(1)), at(6))
    abort = AnnounceAbort("cancelled", "enough")
    assert effects == (abort, CloseBatch("all", 0, CANCELLED)), "and the abort, which may have been lost with it"
    assert step(job, Cancel("again"), at(6)) == (job, (abort,)), "the cancellation itself comes again after a crash"
    job, _ = step(job, AbortAnnounced(), at(6))
    _, effects = step(job, Tick(asked_before=at(1)), at(6))
    assert effects == (CloseBatch("all", 0, CANCELLED),)
    assert step(job, Cancel("again"), at(6)) == (job, ())


def test_a_cancelled_job_keeps_the_reason_of_a_batch_that_was_out_of_time() -> None:
    job, closings = step(started(TWO_LANES), Tick(NEVER), at(10))
    _, effects = step(job, Cancel("enough"), at(11))
    assert effects == (AnnounceAbort("cancelled", "enough"), *closings)


def test_due_at_is_the_next_moment_a_tick_does_anything() -> None:
    soon = timedelta(seconds=1)
    job = published(ONE_LANE)
    assert ONE_LANE.job().due_at(timedelta(seconds=3), soon) is None
    assert job.due_at(timedelta(seconds=3), soon) == at(3)
    assert job.due_at(timedelta(seconds=60), soon) == at(10)
    closing, _ = step(job, Tick(NEVER), at(10))
    assert closing.due_at(timedelta(seconds=60), soon) == at(20)


IMPOSSIBLE: list[tuple[str, Event]] = [
    ("other lanes", Start((("eu", Upcoming(0, 6)),))),
    ("without a single batch", Start((("all", None),))),
    ("does not exist", Start((("all", Upcoming(3, 6)),))),
    ("a lane that the job does not have", BatchCompleted("eu", 0, Tally(6), Upcoming(1, 6))),
    ("a question that the job does not have", BatchCompleted("all", 3, Tally(6), None)),
    ("a question that the job does not have", BatchCompleted("all", -1, Tally(6), None)),
    ("another number of executions", BatchCompleted("all", 0, Tally(5), Upcoming(1, 6))),
    ("does not exist", BatchCompleted("all", 0, Tally(6), Upcoming(0, 6))),
    ("does not exist", BatchCompleted("all", 0, Tally(6), Upcoming(1, 0))),
]


@pytest.mark.parametrize(("why", "event"), IMPOSSIBLE)
def test_an_impossible_event_raises_with_its_story(why: str, event: Event) -> None:
    with pytest.raises(ImpossibleEventError, match=why) as raised:
        step(started(ONE_LANE), event, at(1))
    assert "BatchCompleted(" in str(raised.value) or "Start(" in str(raised.value)
    assert "Phase.RUNNING" in str(raised.value)
