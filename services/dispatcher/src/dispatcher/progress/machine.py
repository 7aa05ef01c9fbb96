"""The transitions of a job. Everything that moves one is in this file.

::

              Cancel, GiveUp: abort, finish
      ┌───────────────────────────────────────────────┐
      │                                               ▼
    QUEUED ──Start──▶ RUNNING ──last batch──────▶ FINISHED
                      │    ▲ │                        ▲
       BatchCompleted │    │ │ Cancel, GiveUp         │ last open batch
        (report, open └────┘ │ job deadline           │
         the next one)       │ early stop             │
                             ▼ (abort, close)         │
                           ENDING ────────────────────┘

    ============ ================== ======================= ================== =========
    event        QUEUED             RUNNING                 ENDING             FINISHED
    ============ ================== ======================= ================== =========
    Start        open every lane    -                       -                  -
    Batch-       -                  open the next batch,    one lane less,     -
    Completed                       end early, or finish    finish at the last
    Cancel,      finish             end                     abort again until  -
    GiveUp                                                  it is announced
    Tick         -                  end at the job's        close again        -
                                    deadline, close at a
                                    batch's, inspect
    Inspected    -                  publish what is         -                  -
                                    missing, or confirm
    Renew,       -                  note it in the batch    -                  -
    Published
    Abort-       -                  -                       note it            -
    Announced
    ============ ================== ======================= ================== =========

``-`` leaves the job as it is, without effects: the event is a repetition or is late.

What a step wants published is published after its commit, and never twice. So a new batch is *opening*: the dispatcher
that committed it holds a lease (``Batch.opening_until``), renews it while it publishes (``Renew``), and says some time
later that it is done (``Published``); a completion says the same. A batch whose lease was not renewed is inspected, as
a silent one is: a round begins with a fence, results is asked once the fence has reached the executors, and the answer
(``Inspected``) counts only while its round lasts. See ``docs/adr/0014``.

Ending before completion is one mechanism, whatever the cause: work is aborted, open batches are closed (their
unfinished executions are written off), and when the last of them is complete the job is finished.

A batch that is out of time is closed alone; its completion then moves the lane on as any other.
"""

from dataclasses import replace
from datetime import datetime

from dispatcher.progress.effects import (
    AnnounceAbort,
    AnnounceStart,
    CloseBatch,
    Effect,
    Finish,
    OpenBatch,
    ReportBatch,
)
from dispatcher.progress.events import (
    AbortAnnounced,
    BatchCompleted,
    Cancel,
    Event,
    GiveUp,
    Inspected,
    Published,
    Renew,
    Start,
    Tick,
    Upcoming,
)
from dispatcher.progress.openings import inspected, lease_from, look_at_batches, published, renew
from dispatcher.progress.state import Batch, Closing, Cut, Ending, Job, Outcome, Phase

Step = tuple[Job, tuple[Effect, ...]]


class ImpossibleEventError(Exception):
    """An event that cannot have happened to this job. The message tells the story: the event and the state."""

    def __init__(self, why: str, job: Job, event: Event) -> None:
        super().__init__(f"{why}: {event!r} happened to {job!r}")


def step(job: Job, event: Event, now: datetime) -> Step:
    """The job after an event at ``now``, and what is to be published once it is committed.

    Raises:
        ImpossibleEventError: The event contradicts what is known about the job.
    """
    _check(job, event)
    match job.phase:
        case Phase.QUEUED:
            return _while_queued(job, event, now)
        case Phase.RUNNING:
            return _while_running(job, event, now)
        case Phase.ENDING:
            return _while_ending(job, event, now)
        case Phase.FINISHED:
            return job, ()


def _while_queued(job: Job, event: Event, now: datetime) -> Step:
    match event:
        case Start():
            return _start(job, event, now)
        case Cancel() | GiveUp():
            return _end(job, _asked_for(event, now), now)
        case _:
            return job, ()


def _while_running(job: Job, event: Event, now: datetime) -> Step:
    match event:
        case BatchCompleted():
            return _complete(job, event, now)
        case Cancel() | GiveUp():
            return _end(job, _asked_for(event, now), now)
        case Tick():
            return _tick(job, event, now)
        case Inspected():
            return inspected(job, event, now)
        case Renew() | Published():
            return (renew(job, event, now) if isinstance(event, Renew) else published(job, event, now)), ()
        case _:
            return job, ()


def _while_ending(job: Job, event: Event, now: datetime) -> Step:
    match event:
        case BatchCompleted():
            return _complete(job, event, now)
        case Cancel() | GiveUp():
            return job, _abort_again(job)
        case Tick():
            closed, closings = look_at_batches(job, event, now)
            return closed, (*(_abort_again(job) if closings else ()), *closings)
        case AbortAnnounced():
            assert job.ending is not None, "an ending job has an ending"
            return replace(job, ending=replace(job.ending, announced=True)), ()
        case _:
            return job, ()


# --- transitions ---------------------------------------------------------------------------------------------


def _start(job: Job, event: Start, now: datetime) -> Step:
    started = replace(job, phase=Phase.RUNNING, started_at=now)
    effects: list[Effect] = [AnnounceStart(now)]
    for lane, upcoming in event.first:
        if upcoming is not None:
            started, opened = _open(started, lane, upcoming, now)
            effects.append(opened)
    return started, tuple(effects)


def _complete(job: Job, event: BatchCompleted, now: datetime) -> Step:
    batch = job.open_batch(event.lane)
    if batch is None or batch.index != event.index:
        return job, ()
    report = ReportBatch(event.lane, batch.index, event.tally, batch.opened_at, batch.closing)
    counted = replace(
        job.with_batch(event.lane, None),
        tally=job.tally + event.tally,
        batches_completed=job.batches_completed + 1,
    )
    after, effects = _move_on(counted, event, now)
    return after, (report, *effects)


def _move_on(job: Job, event: BatchCompleted, now: datetime) -> Step:
    """What follows a batch that was just counted."""
    more = event.upcoming if job.phase is Phase.RUNNING else None
    if more is None and not job.open_lanes:
        return _finish(job)
    if job.phase is Phase.RUNNING and _is_hopeless(job):
        return _end(job, _stopped_early(job, now), now)
    if more is None:
        return job, ()
    opened_job, opened = _open(job, event.lane, more, now)
    return opened_job, (opened,)


def _tick(job: Job, event: Tick, now: datetime) -> Step:
    assert job.deadline is not None, "a running job has started"
    if now >= job.deadline:
        return _end(job, _out_of_time(job, now), now)
    overdue, effects = job, []
    for lane, batch in job.open_lanes:
        if batch.closing is None and now >= batch.deadline:
            closing = _batch_out_of_time(job)
            overdue = overdue.with_batch(lane.name, replace(batch, closing=closing, asked_at=now))
            effects.append(CloseBatch(lane.name, batch.index, closing))
    asked, questions = look_at_batches(overdue, event, now)
    return asked, (*effects, *questions)


def _abort_again(job: Job) -> tuple[Effect, ...]:
    """The abort, until the executors are known to have been told."""
    assert job.ending is not None, "an ending job has an ending"
    if job.ending.announced:
        return ()
    return (AnnounceAbort(job.ending.closing.code, job.ending.closing.message),)


def _end(job: Job, ending: Ending, now: datetime) -> Step:
    ended = replace(job, phase=Phase.ENDING, ending=ending)
    effects: list[Effect] = [AnnounceAbort(ending.closing.code, ending.closing.message)]
    for lane, batch in job.open_lanes:
        closing = batch.closing or ending.closing
        ended = ended.with_batch(lane.name, replace(batch, closing=closing, asked_at=now))
        effects.append(CloseBatch(lane.name, batch.index, closing))
    if ended.open_lanes:
        return ended, tuple(effects)
    finished, last = _finish(ended)
    return finished, (*effects, *last)


def _finish(job: Job) -> Step:
    not_started = job.rules.executions - job.tally.total
    outcome, code, message = _verdict(job)
    return replace(job, phase=Phase.FINISHED), (Finish(outcome, code, message, job.tally, not_started),)


def _open(job: Job, lane: str, upcoming: Upcoming, now: datetime) -> tuple[Job, OpenBatch]:
    assert job.deadline is not None, "batches open in a started job"
    deadline = min(now + job.rules.batch_deadline, job.deadline)
    lease = lease_from(now)
    batch = Batch(upcoming.index, upcoming.size, opened_at=now, deadline=deadline, asked_at=now, opening_until=lease)
    return job.with_batch(lane, batch), OpenBatch(lane, batch.index, now, deadline, lease)


# --- verdicts ------------------------------------------------------------------------------------------------


def _verdict(job: Job) -> tuple[Outcome, str, str]:
    if job.ending is not None:
        return job.ending.outcome, job.ending.closing.code, job.ending.closing.message
    done, planned = job.tally.completed, job.rules.executions
    share = f"{done} of {planned} executions completed"
    if done / planned >= job.rules.min_success_rate:
        return Outcome.COMPLETED, "all_batches_completed", share
    needed = f"the job asks for a success rate of at least {job.rules.min_success_rate:g}"
    return Outcome.FAILED, "below_min_success_rate", f"{share}; {needed}"


def _is_hopeless(job: Job) -> bool:
    stop = job.rules.stop
    if stop is None or job.batches_completed < stop.after_batches:
        return False
    return job.tally.total - job.tally.completed >= stop.failure_rate * job.tally.total


def _asked_for(event: Cancel | GiveUp, now: datetime) -> Ending:
    if isinstance(event, Cancel):
        return Ending(Outcome.CANCELLED, Closing(Cut.CANCELLED, "cancelled", event.message), now)
    return Ending(Outcome.FAILED, Closing(Cut.CANCELLED, "undeliverable", event.message), now)


def _out_of_time(job: Job, now: datetime) -> Ending:
    message = f"the job was not finished {job.rules.job_deadline.total_seconds():g} s after its start"
    return Ending(Outcome.FAILED, Closing(Cut.TIMED_OUT, "job_deadline", message), now)


def _batch_out_of_time(job: Job) -> Closing:
    message = f"the batch was not complete {job.rules.batch_deadline.total_seconds():g} s after its opening"
    return Closing(Cut.TIMED_OUT, "batch_deadline", message)


def _stopped_early(job: Job, now: datetime) -> Ending:
    missed, total = job.tally.total - job.tally.completed, job.tally.total
    message = f"{missed} of {total} executions did not complete in the first {job.batches_completed} batches"
    return Ending(Outcome.FAILED, Closing(Cut.CANCELLED, "stopped_early", message), now)


# --- what cannot be ------------------------------------------------------------------------------------------


def _check(job: Job, event: Event) -> None:
    match event:
        case Start():
            _check_start(job, event)
        case BatchCompleted():
            _check_completion(job, event)
        case Cancel() | GiveUp() | Tick() | Renew() | Published() | Inspected() | AbortAnnounced():
            pass


def _check_start(job: Job, event: Start) -> None:
    if tuple(name for name, _ in event.first) != tuple(lane.name for lane in job.lanes):
        raise ImpossibleEventError("a start names other lanes than the job has", job, event)
    if all(upcoming is None for _, upcoming in event.first):
        raise ImpossibleEventError("a job without a single batch starts", job, event)
    for _, upcoming in event.first:
        _check_upcoming(job, event, upcoming, after=-1)


def _check_completion(job: Job, event: BatchCompleted) -> None:
    if event.lane not in {lane.name for lane in job.lanes}:
        raise ImpossibleEventError("a batch completed in a lane that the job does not have", job, event)
    if not 0 <= event.index < job.rules.questions:
        raise ImpossibleEventError("a batch completed for a question that the job does not have", job, event)
    batch = job.open_batch(event.lane)
    if batch is not None and batch.index == event.index and batch.size != event.tally.total:
        raise ImpossibleEventError("a batch completed with another number of executions than it has", job, event)
    _check_upcoming(job, event, event.upcoming, after=event.index)


def _check_upcoming(job: Job, event: Event, upcoming: Upcoming | None, *, after: int) -> None:
    if upcoming is None:
        return
    if not after < upcoming.index < job.rules.questions or not 0 < upcoming.size <= job.rules.executions:
        raise ImpossibleEventError("the batch said to come next does not exist", job, event)
