"""Every reachable state of small jobs, under every event at every moment: early, in order, late, twice."""

from collections import deque
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from dispatcher.progress import (
    LEASE,
    AbortAnnounced,
    AnnounceAbort,
    BatchCompleted,
    Cancel,
    CloseBatch,
    ConfirmBatch,
    Effect,
    Event,
    FenceBatch,
    Finish,
    GiveUp,
    InspectBatch,
    Inspected,
    Job,
    OpenBatch,
    Phase,
    Published,
    Renew,
    ReopenBatch,
    StopRule,
    Tally,
    Tick,
    codec,
    step,
)
from tests.unit.dispatcher.matrix import Matrix, at

MOMENTS = (at(0), at(10), at(20))
"""The start, the deadline of a batch opened then, the deadline of the job."""
INSPECT_AFTER = timedelta(seconds=10)
ASK_AFTER = timedelta(seconds=3)
ORDER = tuple(Phase)

JOBS = {
    "one question": Matrix({"all": (2,)}),
    "barrier question": Matrix({"all": (2, 1, 2)}),
    "barrier region": Matrix({"us": (1, 2), "eu": (2, 1)}),
    "partial": Matrix({"us": (0, 1, 0), "eu": (1, 0, 1), "apac": (0, 0, 0)}),
    "strict": Matrix({"all": (1, 1)}, min_success_rate=1.0),
    "stops early": Matrix({"us": (1, 1), "eu": (1, 1)}, stop=StopRule(0.5, 1)),
}


def tallies(size: int) -> set[Tally]:
    """The best, the worst, and a mixed end of a batch."""
    mixed = Tally(size // 2, timed_out=size - size // 2)
    return {Tally(size), Tally(failed=size), mixed}


def tick(now: datetime, job: Job | None = None) -> Tick:
    """A tick of the timer; every opening whose lease is out is abandoned."""
    lanes = () if job is None else job.open_lanes
    abandoned = frozenset(
        lane.name for lane, batch in lanes if batch.opening_until is not None and batch.opening_until <= now
    )
    return Tick(now - INSPECT_AFTER, "t1", ASK_AFTER, abandoned)


def events(matrix: Matrix, job: Job, now: datetime) -> Iterator[Event]:
    """Everything that could be said to a job, whether or not it fits."""
    yield matrix.start()
    yield Cancel("enough")
    yield GiveUp("no queue")
    yield AbortAnnounced()
    if len(matrix.sizes) == 1:
        yield tick(now)
        yield from events_of_openings(job, now)
    else:  # the states of inspections would be the product of those of each lane
        yield Tick(now - 10 * INSPECT_AFTER)
    for lane, sizes in matrix.sizes.items():
        for index, size in enumerate(sizes):
            if size:
                upcoming = matrix.upcoming(lane, index)
                yield from (BatchCompleted(lane, index, tally, upcoming) for tally in tallies(size))


def events_of_openings(job: Job, now: datetime) -> Iterator[Event]:
    """Everything that may happen to an open batch besides its completion."""
    for lane, batch in job.open_lanes:
        cells = (("model", lane.name, 0),)
        yield Tick(now - INSPECT_AFTER, "t1", ASK_AFTER, frozenset({lane.name}))
        if batch.opening_until is not None:
            yield Published(((lane.name, batch.index, batch.opening_until),))
            if batch.opening_until < now + LEASE:
                yield Renew(lane.name, batch.index, batch.opening_until)
        for token in ("t1", "t2"):
            yield Inspected(lane.name, batch.index, token, cells, 0)
            yield Inspected(lane.name, batch.index, token, (), 1)
            yield Inspected(lane.name, batch.index, token, (), 0)


@pytest.mark.parametrize("matrix", JOBS.values(), ids=JOBS.keys())
def test_every_order_of_events(matrix: Matrix) -> None:
    seen: set[tuple[Job, datetime]] = set()
    waiting = deque([(matrix.job(), moment) for moment in MOMENTS])
    finished = 0
    while waiting:
        job, now = waiting.popleft()
        if (job, now) in seen:
            continue
        seen.add((job, now))
        check_state(matrix, job, now)
        finished += job.phase is Phase.FINISHED
        for event in events(matrix, job, now):
            after, effects = step(job, event, now)
            check_step(matrix, job, event, after, effects)
            again, repeated = step(after, event, now)
            assert again == after or isinstance(event, Renew), "the same event again changes nothing"
            assert {type(effect) for effect in repeated} <= {AnnounceAbort}, "it may have been lost"
            waiting.extend((after, later) for later in MOMENTS if later >= now)
    assert finished > 0


def check_state(matrix: Matrix, job: Job, now: datetime) -> None:
    """What holds in every state."""
    assert codec.decode(codec.encode(job)) == job
    assert job.tally.total + sum(batch.size for _, batch in job.open_lanes) <= job.rules.executions
    assert bool(job.open_lanes) == (job.phase in (Phase.RUNNING, Phase.ENDING)), "it waits for something, or ended"
    assert (job.ending is not None) >= (job.phase is Phase.ENDING)
    if job.phase is Phase.ENDING:
        assert all(batch.closing is not None for _, batch in job.open_lanes)
    check_due(job, now)
    check_can_finish(matrix, job, now)


def check_due(job: Job, now: datetime) -> None:
    """``due_at`` is exactly the next moment at which a tick does anything."""
    due = job.due_at(INSPECT_AFTER, ASK_AFTER)
    assert (due is None) == (not job.open_lanes)
    if due is None:
        return
    before = due - timedelta(microseconds=1)
    assert step(job, tick(before, job), before) == (job, ())
    after, effects = step(job, tick(due, job), due)
    assert after != job
    assert effects


def check_can_finish(matrix: Matrix, job: Job, now: datetime) -> None:
    """Completions of what is open always lead to the end."""
    if job.phase is Phase.QUEUED:
        job, _ = step(job, matrix.start(), now)
    for _ in range(job.rules.questions * len(job.lanes)):
        for lane, batch in job.open_lanes:
            job, _ = step(job, matrix.completed(lane.name, batch.index), now)
    assert job.phase is Phase.FINISHED


def check_step(matrix: Matrix, job: Job, event: Event, after: Job, effects: tuple[Effect, ...]) -> None:
    """What holds of every step."""
    if not isinstance(event, Renew | Published | Inspected | AbortAnnounced):
        aborts_again = [type(effect) for effect in effects] == [AnnounceAbort]
        assert (after != job) == (bool(effects) and not aborts_again), "nothing moves without a word, or the reverse"
    assert ORDER.index(after.phase) >= ORDER.index(job.phase)
    assert after.tally.total >= job.tally.total
    assert after.rules == job.rules
    for effect in effects:
        check_effect(matrix, job, event, after, effect)
    ends = [effect for effect in effects if isinstance(effect, Finish)]
    assert len(ends) == (job.phase is not Phase.FINISHED and after.phase is Phase.FINISHED)
    aborts = [effect for effect in effects if isinstance(effect, AnnounceAbort)]
    repeated = job.phase is Phase.ENDING and job.ending is not None and not job.ending.announced
    assert len(aborts) == (job.ending is None and after.ending is not None) or (repeated and len(aborts) == 1)


def check_effect(matrix: Matrix, job: Job, event: Event, after: Job, effect: Effect) -> None:
    """An effect agrees with the states before and after it."""
    match effect:
        case OpenBatch(lane, index):
            opened, before = after.open_batch(lane), job.open_batch(lane)
            assert opened is not None
            assert (opened.index, opened.size) == (index, matrix.sizes[lane][index])
            assert after.phase is Phase.RUNNING
            assert after.deadline is not None
            assert effect.deadline <= after.deadline
            follows = matrix.upcoming(lane, -1 if before is None else before.index)
            assert follows is not None
            assert follows.index == index
            if before is not None:
                assert isinstance(event, BatchCompleted)
                assert (event.lane, event.index) == (lane, before.index), "the barrier holds"
        case CloseBatch(lane, index) | InspectBatch(lane, index) | FenceBatch(lane, index):
            batch = after.open_batch(lane)
            assert batch is not None
            assert batch.index == index
            assert (batch.closing is not None) == isinstance(effect, CloseBatch)
        case ReopenBatch(lane, index) | ConfirmBatch(lane, index):
            batch, before = after.open_batch(lane), job.open_batch(lane)
            assert isinstance(event, Inspected)
            assert batch is not None
            assert before is not None
            assert before.fence is not None
            assert before.fence.token == event.token
            assert (batch.index, batch.fence) == (index, None)
            assert batch.opening_until == (effect.lease if isinstance(effect, ReopenBatch) else None)
        case Finish():
            assert effect.not_started == after.rules.executions - after.tally.total
            assert effect.not_started >= 0
            assert effect.tally == after.tally
        case _:
            pass
