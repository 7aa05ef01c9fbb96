"""An open batch before its completion: it is published, falls silent, is inspected, and what it lacks is published.

A batch is opened by the dispatcher that holds its lease. Once a round of inspection has begun, that dispatcher cannot
renew the lease any more, so nobody publishes while executors and results are asked what they hold.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from dispatcher.progress.effects import CloseBatch, ConfirmBatch, Effect, FenceBatch, InspectBatch, ReopenBatch
from dispatcher.progress.events import Inspected, Published, Renew, Tick
from dispatcher.progress.state import LEASE, Batch, Fence, Job

Step = tuple[Job, tuple[Effect, ...]]


def lease_from(now: datetime, earlier: datetime | None = None) -> datetime:
    """A lease from now on that is not the earlier one, even when the clock was set back: it names the opening."""
    lease = now + LEASE
    return lease if lease != earlier else lease + timedelta(microseconds=1)


def look_at_batches(job: Job, event: Tick, now: datetime) -> Step:
    """Repeat closings that were not answered, and inspect what is silent or abandoned."""
    effects: list[Effect] = []
    for lane, batch in job.open_lanes:
        looked = _look_at(lane.name, batch, event, now)
        if looked is not None:
            after, effect = looked
            job = job.with_batch(lane.name, after)
            effects.append(effect)
    return job, tuple(effects)


def _look_at(lane: str, batch: Batch, event: Tick, now: datetime) -> tuple[Batch, Effect] | None:
    silent = batch.asked_at <= event.asked_before and batch.asked_at < now
    if batch.closing is not None:
        return (replace(batch, asked_at=now), CloseBatch(lane, batch.index, batch.closing)) if silent else None
    if batch.fence is not None and batch.fence.at > event.asked_before:
        if now < batch.ask_at(event.ask_after):
            return None
        return replace(batch, asked_at=now), InspectBatch(lane, batch.index, batch.fence.token)
    if batch.fence is not None:
        due = batch.fence.at < now
    elif batch.opening_until is not None:
        due = lane in event.abandoned
    else:
        due = silent
    if not due:
        return None
    fenced = replace(batch, fence=Fence(event.token, now), asked_at=now)
    return fenced, FenceBatch(lane, batch.index, event.token)


def inspected(job: Job, event: Inspected, now: datetime) -> Step:
    """Take what results found, once: the round ends with the first answer that leads to something."""
    batch = job.open_batch(event.lane)
    if batch is None or batch.index != event.index or batch.closing is not None:
        return job, ()
    if batch.fence is None or batch.fence.token != event.token:
        return job, ()
    if event.missing:
        lease = lease_from(now, batch.opening_until)
        opening = replace(batch, fence=None, asked_at=now, opening_until=lease)
        again = ReopenBatch(event.lane, batch.index, batch.opened_at, batch.deadline, lease, event.missing)
        return job.with_batch(event.lane, opening), (again,)
    if event.undecided:
        return job, ()
    published = replace(batch, fence=None, asked_at=now, opening_until=None)
    confirmed = ConfirmBatch(event.lane, batch.index, batch.opened_at, batch.deadline)
    return job.with_batch(event.lane, published), (() if batch.opening_until is None else (confirmed,))


def renew(job: Job, event: Renew, now: datetime) -> Job:
    """More time for the one that holds the lease; a batch that is being inspected has been taken from it."""
    batch = job.open_batch(event.lane)
    if batch is None or (batch.index, batch.opening_until) != (event.index, event.lease):
        return job
    if batch.closing is not None or batch.fence is not None:
        return job
    return job.with_batch(event.lane, replace(batch, opening_until=lease_from(now, event.lease)))


def published(job: Job, event: Published, now: datetime) -> Job:
    for lane, index, lease in event.batches:
        batch = job.open_batch(lane)
        if batch is not None and (batch.index, batch.opening_until) == (index, lease):
            job = job.with_batch(lane, replace(batch, opening_until=None, asked_at=now))
    return job
