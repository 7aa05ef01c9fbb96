"""Whether an opening is abandoned, told without trusting the clock that wrote its lease."""

from datetime import timedelta

from dispatcher.jobs import StoredJob
from dispatcher.leases import MAX_WATCHED, Leases
from dispatcher.progress import LEASE, Job, Renew, step
from dispatcher.tasks import Template
from parallax.contracts.submission import CheckedJob
from tests.fakes.clock import ManualClock
from tests.unit.dispatcher.matrix import Matrix
from tests.unit.dispatcher.test_jobs import CATALOG, spec

MATRIX = Matrix({"all": (2, 2)}, batch_deadline=timedelta(hours=1), job_deadline=timedelta(hours=2))
LEASE_S = LEASE.total_seconds()
TEMPLATE = Template.of(CheckedJob.of(spec()), CATALOG)


def stored(progress: Job, job_id: str = "job") -> StoredJob:
    return StoredJob(job_id, TEMPLATE, progress)


def opened(clock: ManualClock) -> Job:
    job, _ = step(MATRIX.job(), MATRIX.start(), clock.now())
    return job


def test_a_lease_is_abandoned_once_it_was_watched_for_its_whole_length() -> None:
    clock = ManualClock()
    leases, job = Leases(clock), stored(opened(clock))
    clock.advance(LEASE_S - 1)
    assert leases.abandoned(job, clock.now()) == frozenset(), "it has time left"
    clock.advance(1)
    assert leases.abandoned(job, clock.now()) == frozenset(), "by the clock of somebody else"
    clock.advance(LEASE_S - 1)
    assert leases.abandoned(job, clock.now()) == frozenset()
    clock.advance(1)
    assert leases.abandoned(job, clock.now()) == {"all"}


def test_a_clock_far_ahead_abandons_nothing() -> None:
    clock = ManualClock()
    leases, job = Leases(clock), stored(opened(clock))
    ahead = clock.now() + timedelta(days=1)
    assert leases.abandoned(job, ahead) == frozenset()
    clock.advance(LEASE_S / 2)
    assert leases.abandoned(job, ahead) == frozenset()


def test_a_renewed_lease_is_watched_from_its_renewal() -> None:
    clock = ManualClock()
    leases, progress = Leases(clock), opened(clock)
    clock.advance(LEASE_S)
    leases.abandoned(stored(progress), clock.now())
    batch = progress.open_batch("all")
    assert batch is not None
    assert batch.opening_until is not None
    progress, _ = step(progress, Renew("all", 0, batch.opening_until), clock.now())
    clock.advance(LEASE_S)
    assert leases.abandoned(stored(progress), clock.now()) == frozenset()
    clock.advance(LEASE_S)
    assert leases.abandoned(stored(progress), clock.now()) == {"all"}


def test_the_number_of_leases_that_are_watched_is_bounded() -> None:
    clock = ManualClock()
    leases, progress = Leases(clock), opened(clock)
    clock.advance(LEASE_S)
    for number in range(MAX_WATCHED + 1):
        leases.abandoned(stored(progress, f"job-{number}"), clock.now())
    clock.advance(LEASE_S)
    assert leases.abandoned(stored(progress, "job-1"), clock.now()) == {"all"}
    assert leases.abandoned(stored(progress, "job-0"), clock.now()) == frozenset(), "its watch begins again"
