"""Steps that are written: the state moves inside the caller's transaction, and what follows is handed back.

The order is *commit, then publish, then ack*. Nothing is published inside a transaction, so no lock and no connection
is held while a broker thinks, and nobody is told what may not become true. The state that is committed says what is
still to be published: after a crash the timer finds it there, see ``docs/adr/0013``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from dispatcher.jobs import StoredJob
from dispatcher.outgoing import Outgoing, outgoing
from dispatcher.progress import BatchCompleted, Cancel, Event, ImpossibleEventError, Phase, Tick, step
from dispatcher.store import Work
from parallax.clock import Clock
from parallax.contracts.messages import JobFinished
from parallax.errors import PoisonError

ASKS_OF_A_ROUND: Final = 20
"""A fence is given this part of ``inspect_after_s`` to reach the executors before results is first asked: 3 s of 60."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What one event did to one job, and what is to be published once that is committed."""

    before: StoredJob
    job: StoredJob
    outgoing: Outgoing

    @property
    def ended(self) -> bool:
        """Whether it has ended just now, so that there is room for another job."""
        return self.job.progress.phase is Phase.FINISHED and self.before.progress.phase is not Phase.FINISHED


class Steps:
    """Takes steps of jobs."""

    def __init__(self, clock: Clock, *, inspect_after_s: float) -> None:
        self._clock = clock
        self._inspect_after = timedelta(seconds=inspect_after_s)
        self._ask_after = self._inspect_after / ASKS_OF_A_ROUND

    def tick(self, now: datetime, token: str, *, abandoned: frozenset[str], at_once: bool = False) -> Tick:
        """The event that time has passed; ``at_once`` inspects every open batch, however young."""
        before = now if at_once else now - self._inspect_after
        return Tick(asked_before=before, token=token, ask_after=self._ask_after, abandoned=abandoned)

    async def take(self, work: Work, job: StoredJob, event: Event) -> Moved:
        """Move a locked job; an event that changes nothing writes nothing.

        Raises:
            PoisonError: The event cannot have happened to this job.
        """
        (moved,) = await self.take_all(work, [(job, event)])
        return moved

    async def take_all(self, work: Work, taken: Sequence[tuple[StoredJob, Event]]) -> list[Moved]:
        """The same for several locked jobs, one event each.

        Raises:
            PoisonError: See :meth:`take`.
        """
        now = self._clock.now()
        moves = [await self._move(work, job, event, now) for job, event in taken]
        changed = [(move.job, _end(move.outgoing)) for move in moves if move.job.progress != move.before.progress]
        if changed:
            await work.save(changed, inspect_after=self._inspect_after, ask_after=self._ask_after, now=now)
        return moves

    async def _move(self, work: Work, job: StoredJob, event: Event, now: datetime) -> Moved:
        if job.progress.phase is Phase.FINISHED:
            return Moved(job, job, await _told_again(work, job, event))
        leased_s = self._clock.monotonic()
        try:
            progress, effects = step(job.progress, event, now)
        except ImpossibleEventError as error:
            raise PoisonError(f"job {job.job_id}: {error}") from error
        moved = job.moved(progress)
        return Moved(job, moved, await outgoing(work, moved, effects, now, leased_s))


async def _told_again(work: Work, job: StoredJob, event: Event) -> Outgoing:
    """The end of a job once more, when an input that may have ended it comes again: the first time it may have been
    lost after the commit."""
    if isinstance(event, BatchCompleted | Cancel):
        return Outgoing(job.job_id, (await work.end(job.job_id),))
    return Outgoing(job.job_id)


def _end(outgoing: Outgoing) -> JobFinished | None:
    return next((message for message in outgoing.announcements if isinstance(message, JobFinished)), None)
