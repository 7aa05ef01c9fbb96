"""Batches before their completion: opened under a lease, published, silent, inspected, and repaired."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from dispatcher.progress import (
    LEASE,
    Batch,
    Cancel,
    ConfirmBatch,
    Fence,
    FenceBatch,
    InspectBatch,
    Inspected,
    Job,
    Published,
    Renew,
    ReopenBatch,
    Tick,
    codec,
    step,
)
from tests.unit.dispatcher.matrix import T0, Matrix, at

PATIENT = Matrix({"all": (2, 2)}, batch_deadline=timedelta(seconds=1000), job_deadline=timedelta(seconds=2000))
FIRST_LEASE = T0 + LEASE
SILENT = timedelta(seconds=60)
SOON = timedelta(seconds=3)
ALL = frozenset({"all"})
CELL = ("model", "us", 0)


def opening() -> Job:
    """A job whose first batch is committed and not known to be published."""
    job, _ = step(PATIENT.job(), PATIENT.start(), T0)
    return job


def published() -> Job:
    job, effects = step(opening(), Published((("all", 0, FIRST_LEASE),)), at(1))
    assert effects == ()
    return job


def batch_of(job: Job) -> Batch:
    batch = job.open_batch("all")
    assert batch is not None
    return batch


def tick(now: datetime, token: str = "t1", *, abandoned: frozenset[str] = frozenset()) -> Tick:
    return Tick(asked_before=now - SILENT, token=token, ask_after=SOON, abandoned=abandoned)


def fenced(job: Job, now: datetime, token: str = "t1") -> Job:
    """The job with a round of inspection that began just now."""
    job, effects = step(job, tick(now, token, abandoned=ALL), now)
    assert effects == (FenceBatch("all", 0, token),)
    return job


def test_a_batch_is_opened_under_a_lease_and_published_without_one() -> None:
    assert batch_of(opening()).opening_until == FIRST_LEASE
    assert batch_of(published()) == Batch(0, 2, T0, at(1000), at(1))


def test_a_lease_is_renewed_by_its_holder_alone() -> None:
    job, effects = step(opening(), Renew("all", 0, FIRST_LEASE), at(9))
    assert effects == ()
    assert batch_of(job).opening_until == at(9) + LEASE
    for stale in (Renew("all", 0, FIRST_LEASE), Renew("all", 1, at(9) + LEASE), Renew("eu", 0, at(9) + LEASE)):
        assert step(job, stale, at(10)) == (job, ())


def test_a_renewed_lease_differs_even_when_the_clock_was_set_back() -> None:
    job, _ = step(opening(), Renew("all", 0, FIRST_LEASE), T0)
    assert batch_of(job).opening_until not in (None, FIRST_LEASE)


def test_a_mark_of_an_earlier_opening_changes_nothing() -> None:
    job, _ = step(opening(), Renew("all", 0, FIRST_LEASE), at(9))
    assert step(job, Published((("all", 0, FIRST_LEASE),)), at(10)) == (job, ())


def test_a_batch_that_is_inspected_cannot_be_renewed() -> None:
    job = fenced(opening(), at(70))
    assert step(job, Renew("all", 0, FIRST_LEASE), at(71)) == (job, ())


def test_an_opening_is_left_alone_until_it_is_abandoned() -> None:
    job = opening()
    assert step(job, tick(at(500)), at(500)) == (job, ()), "its holder may be at work, however late it is"
    assert batch_of(fenced(job, at(500))).fence == Fence("t1", at(500))


def test_a_silent_batch_is_fenced_first_and_asked_about_once_the_fence_had_time_to_arrive() -> None:
    job = published()
    assert step(job, tick(at(60)), at(60)) == (job, ())
    job = fenced(job, at(61))
    assert step(job, tick(at(63)), at(63)) == (job, ())
    job, effects = step(job, tick(at(64), "t2"), at(64))
    assert effects == (InspectBatch("all", 0, "t1"),)


def test_results_is_asked_ever_more_seldom_and_then_a_new_round_begins() -> None:
    job, asked, seconds = fenced(published(), at(100)), [], 100
    while batch_of(job).fence == Fence("t1", at(100)):
        seconds += 1
        job, effects = step(job, tick(at(seconds), "t2"), at(seconds))
        asked += [seconds - 100 for effect in effects if isinstance(effect, InspectBatch)]
    assert asked == [3, 6, 12, 24, 48]
    assert batch_of(job).fence == Fence("t2", at(160))


def test_what_is_missing_is_published_again_under_a_lease_of_its_own() -> None:
    job, effects = step(fenced(published(), at(61)), Inspected("all", 0, "t1", (CELL,), 1), at(65))
    lease = at(65) + LEASE
    assert effects == (ReopenBatch("all", 0, T0, at(1000), lease, (CELL,)),)
    assert batch_of(job) == Batch(0, 2, T0, at(1000), at(65), opening_until=lease)


def test_an_answer_counts_once_and_only_in_its_round() -> None:
    job = fenced(published(), at(61))
    assert step(job, Inspected("all", 0, "t0", (CELL,), 0), at(65)) == (job, ()), "a late answer"
    assert step(job, Inspected("all", 1, "t1", (CELL,), 0), at(65)) == (job, ()), "another batch"
    job, _ = step(job, Inspected("all", 0, "t1", (CELL,), 0), at(65))
    assert step(job, Inspected("all", 0, "t1", (CELL,), 0), at(66)) == (job, ()), "the same again"


def test_an_undecided_answer_leaves_the_round_open() -> None:
    job = fenced(published(), at(61))
    assert step(job, Inspected("all", 0, "t1", (), 2), at(65)) == (job, ())


def test_an_opening_of_which_nothing_is_missing_was_published() -> None:
    job, effects = step(fenced(opening(), at(70)), Inspected("all", 0, "t1", (), 0), at(75))
    assert effects == (ConfirmBatch("all", 0, T0, at(1000)),)
    assert batch_of(job) == Batch(0, 2, T0, at(1000), at(75))


def test_an_answer_about_a_silent_batch_that_lacks_nothing_needs_no_word() -> None:
    job, effects = step(fenced(published(), at(61)), Inspected("all", 0, "t1", (), 0), at(65))
    assert effects == ()
    assert batch_of(job) == Batch(0, 2, T0, at(1000), at(65))


def test_a_batch_that_is_closed_is_neither_renewed_nor_repaired() -> None:
    job, _ = step(fenced(opening(), at(70)), Cancel("enough"), at(71))
    for event in (Renew("all", 0, FIRST_LEASE), Inspected("all", 0, "t1", (CELL,), 0)):
        assert step(job, event, at(72)) == (job, ())


@pytest.mark.parametrize("job", [opening(), published(), fenced(opening(), at(70)), fenced(published(), at(61))])
def test_openings_and_rounds_survive_storage(job: Job) -> None:
    assert codec.decode(codec.encode(job)) == job


def test_what_an_earlier_version_stored_is_read() -> None:
    """Its batches are published: it wrote them down after it had published them."""
    job, _ = step(published(), Cancel("enough"), at(2))
    stored = codec.encode(job)
    for key in ("opening_until", "fence"):
        del stored["lanes"][0]["batch"][key]
    for key in ("at", "announced"):
        del stored["ending"][key]
    assert job.ending is not None
    assert codec.decode(stored) == replace(job, ending=replace(job.ending, at=None))
