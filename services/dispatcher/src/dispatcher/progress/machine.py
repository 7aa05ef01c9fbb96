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
    Cancel,      finish             end                     -                  -
    GiveUp
    Tick         -                  end at the job's        ask again          -
                                    deadline, close at a
                                    batch's, ask again
    ============ ================== ======================= ================== =========

``-`` leaves the job as it is, without effects: the event is a repetition, is late, or *runs ahead*. A completion
runs ahead when the step that opened its batch was published but not committed; that step will be taken again,
its batch published again, and its completion told again.

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
    InspectBatch,
    OpenBatch,
    ReportBatch,
)
from dispatcher.progress.events import BatchCompleted, Cancel, Event, GiveUp, Start, Tick, Upcoming
from dispatcher.progress.state import Batch, Closing, Cut, Ending, Job, Outcome, Phase

Step = tuple[Job, tuple[Effect, ...]]


class ImpossibleEventError(Exception):
    """An event that cannot have happened to this job. The message tells the story: the event and the state."""

    def __init__(self, why: str, job: Job, event: Event) -> None:
        super().__init__(f"{why}: {event!r} happened to {job!r}")


def step(job: Job, event: Event, now: datetime) -> Step:
    """The job after an event at ``now``, and what the world has to be told.

    Raises:
        ImpossibleEventError: The event contradicts what is known about the job.
    """
    _check(job, event)
    match job.phase, event:
        case Phase.QUEUED, Start():
            return _start(job, event, now)
        case Phase.RUNNING | Phase.ENDING, BatchCompleted():
            return _complete(job, event, now)
        case Phase.QUEUED | Phase.RUNNING, Cancel() | GiveUp():
            return _end(job, _asked_for(event), now)
        case Phase.RUNNING, Tick():
            return _tick(job, event, now)
        case Phase.ENDING, Tick():
            return _ask_again(job, event, now)
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
        return _end(job, _stopped_early(job), now)
    if more is None:
        return job, ()
    opened_job, opened = _open(job, event.lane, more, now)
    return opened_job, (opened,)


def _tick(job: Job, event: Tick, now: datetime) -> Step:
    assert job.deadline is not None, "a running job has started"
    if now >= job.deadline:
        return _end(job, _out_of_time(job), now)
    overdue, effects = job, []
    for lane, batch in job.open_lanes:
        if batch.closing is None and now >= batch.deadline:
            closing = _batch_out_of_time(job)
            overdue = overdue.with_batch(lane.name, replace(batch, closing=closing, asked_at=now))
            effects.append(CloseBatch(lane.name, batch.index, closing))
    asked, questions = _ask_again(overdue, event, now)
    return asked, (*effects, *questions)


def _ask_again(job: Job, event: Tick, now: datetime) -> Step:
    """Repeat what results may never have heard: a closing, or else ask how far the batch is."""
    effects: list[Effect] = []
    asked = job
    for lane, batch in job.open_lanes:
        if batch.asked_at > event.asked_before or batch.asked_at >= now:
            continue
        asked = asked.with_batch(lane.name, replace(batch, asked_at=now))
        if batch.closing is None:
            effects.append(InspectBatch(lane.name, batch.index))
        else:
            effects.append(CloseBatch(lane.name, batch.index, batch.closing))
    return asked, tuple(effects)


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
    batch = Batch(upcoming.index, upcoming.size, opened_at=now, deadline=deadline, asked_at=now)
    return job.with_batch(lane, batch), OpenBatch(lane, batch.index, now, deadline)


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


def _asked_for(event: Cancel | GiveUp) -> Ending:
    if isinstance(event, Cancel):
        return Ending(Outcome.CANCELLED, Closing(Cut.CANCELLED, "cancelled", event.message))
    return Ending(Outcome.FAILED, Closing(Cut.CANCELLED, "undeliverable", event.message))


def _out_of_time(job: Job) -> Ending:
    message = f"the job was not finished {job.rules.job_deadline.total_seconds():g} s after its start"
    return Ending(Outcome.FAILED, Closing(Cut.TIMED_OUT, "job_deadline", message))


def _batch_out_of_time(job: Job) -> Closing:
    message = f"the batch was not complete {job.rules.batch_deadline.total_seconds():g} s after its opening"
    return Closing(Cut.TIMED_OUT, "batch_deadline", message)


def _stopped_early(job: Job) -> Ending:
    missed, total = job.tally.total - job.tally.completed, job.tally.total
    message = f"{missed} of {total} executions did not complete in the first {job.batches_completed} batches"
    return Ending(Outcome.FAILED, Closing(Cut.CANCELLED, "stopped_early", message))


# --- what cannot be ------------------------------------------------------------------------------------------


def _check(job: Job, event: Event) -> None:
    match event:
        case Start():
            _check_start(job, event)
        case BatchCompleted():
            _check_completion(job, event)
        case Cancel() | GiveUp() | Tick():
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
