"""Larger jobs against a world that loses, repeats and reorders messages, and crashes before and after commits."""

import json
from collections import deque
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.progress import (
    AnnounceAbort,
    BatchCompleted,
    Cancel,
    CloseBatch,
    Effect,
    Event,
    Finish,
    Job,
    OpenBatch,
    Outcome,
    Phase,
    StopRule,
    Tally,
    Tick,
    codec,
    step,
)
from tests.unit.dispatcher.matrix import T0, Matrix

INSPECT_AFTER = timedelta(seconds=30)
ASK_AFTER = timedelta(seconds=3)

sizes = st.lists(st.integers(0, 5), min_size=1, max_size=12).map(tuple)
matrices = st.builds(
    Matrix,
    sizes=st.dictionaries(st.sampled_from(["us", "eu", "apac", "sa"]), sizes, min_size=1, max_size=4).filter(
        lambda lanes: any(any(lane) for lane in lanes.values())
    ),
    min_success_rate=st.floats(0, 1),
    stop=st.none() | st.builds(StopRule, st.floats(0.1, 1), st.integers(1, 6)),
    batch_deadline=st.just(timedelta(seconds=100)),
    job_deadline=st.integers(50, 2_000).map(lambda seconds: timedelta(seconds=seconds)),
)


@dataclass
class World:
    """Results as the core sees it: knows every batch that was published or closed, answers when it likes."""

    matrix: Matrix
    job: Job
    now: datetime = T0
    complete: dict[tuple[str, int], Tally] = field(default_factory=dict)
    aborted: bool = False
    ends: list[Finish] = field(default_factory=list)

    def take(self, event: Event, *, crash: bool = False) -> tuple[Effect, ...]:
        """Step and commit; a crash comes before what follows is published."""
        self.job, effects = step(self.job, event, self.now)
        self.ends += [effect for effect in effects if isinstance(effect, Finish)]
        if crash:
            return ()
        for effect in effects:
            self.carry_out(effect)
        return effects

    def carry_out(self, effect: Effect) -> None:
        if isinstance(effect, AnnounceAbort):
            self.aborted = True

    def answer(self, lane: str, index: int, failed: int) -> BatchCompleted:
        """The completion of a batch; its counts are fixed the first time."""
        size = self.matrix.sizes[lane][index]
        failed = min(failed, size)
        tally = self.complete.setdefault((lane, index), Tally(size - failed, failed))
        return BatchCompleted(lane, index, tally, self.matrix.upcoming(lane, index))

    def drain(self) -> None:
        """Results answers everything; the timer goes on."""
        for _ in range(10_000):
            if self.job.phase is Phase.FINISHED:
                # The last words of a job that ended early repeat the abort until it is known to be announced.
                self.aborted |= self.job.ending is not None
                return
            if self.job.phase is Phase.QUEUED:
                self.take(self.matrix.start())
            for lane, batch in self.job.open_lanes:
                self.take(self.answer(lane.name, batch.index, 0))
        pytest.fail(f"the job never ends: {self.job}")


moves = st.lists(
    st.tuples(
        st.sampled_from(["start", "cancel", "answer", "answer", "answer", "late", "tick"]),
        st.integers(0, 5),
        st.integers(0, 60),
        st.booleans(),
    ),
    max_size=60,
)


def open_or_known(world: World, kind: str, pick: int) -> tuple[str, int] | None:
    """A batch to answer: an open one, or any that was ever answered."""
    known = sorted(world.complete) if kind == "late" else [(ln.name, b.index) for ln, b in world.job.open_lanes]
    return known[pick % len(known)] if known else None


@given(matrix=matrices, script=moves)
def test_any_job_ends_once_and_its_counts_add_up(matrix: Matrix, script: list[tuple[str, int, int, bool]]) -> None:
    world = World(matrix, matrix.job())
    cancelled = False
    for kind, pick, seconds, crash in script:
        world.now += timedelta(seconds=seconds)
        match kind:
            case "start":
                world.take(matrix.start(), crash=crash)
            case "cancel":
                cancelled |= world.job.phase in (Phase.QUEUED, Phase.RUNNING)
                world.take(Cancel("enough"), crash=crash)
            case "tick":
                world.take(Tick(world.now - INSPECT_AFTER), crash=crash)
            case _:
                chosen = open_or_known(world, kind, pick)
                if chosen is not None:
                    world.take(world.answer(*chosen, failed=pick), crash=crash)
    world.drain()
    (end,) = world.ends
    counted = sum((tally.total for tally in world.complete.values()), 0)
    assert end.tally.total + end.not_started == matrix.rules.executions
    assert end.tally.total == counted, "every batch that was answered counts once"
    if cancelled:
        assert (end.outcome, end.code) == (Outcome.CANCELLED, "cancelled")
    if end.code == "all_batches_completed":
        assert end.not_started == 0
        assert end.tally.completed / matrix.rules.executions >= matrix.min_success_rate
    if end.not_started:
        assert world.aborted


@given(matrix=matrices)
def test_the_timer_alone_ends_every_job(matrix: Matrix) -> None:
    """Executors are gone: batches are closed by their deadlines, and results answers closings only."""
    world = World(matrix, matrix.job())
    world.take(matrix.start())
    for _ in range(500):
        if world.job.phase is Phase.FINISHED:
            break
        due = world.job.due_at(INSPECT_AFTER, ASK_AFTER)
        assert due is not None
        world.now = max(world.now, due)
        lanes = frozenset(lane.name for lane, _ in world.job.open_lanes)
        said = deque(world.take(Tick(world.now - INSPECT_AFTER, "token", ASK_AFTER, lanes)))
        assert said
        while said:
            effect = said.popleft()
            if isinstance(effect, CloseBatch):
                size = matrix.sizes[effect.lane][effect.index]
                answer = replace(matrix.completed(effect.lane, effect.index), tally=Tally(timed_out=size))
                said.extend(world.take(answer))
    assert world.job.phase is Phase.FINISHED
    assert world.now - T0 <= matrix.job_deadline + timedelta(seconds=1)


@given(matrix=matrices)
def test_the_state_survives_storage(matrix: Matrix) -> None:
    job, _ = step(matrix.job(), matrix.start(), T0)
    job, _ = step(job, Cancel('a "quoted"\nreason'), T0)
    assert codec.decode(json.loads(json.dumps(codec.encode(job)))) == job


def test_the_state_does_not_grow_with_the_number_of_questions() -> None:
    def stored(questions: int) -> int:
        matrix = Matrix({"all": (6,) * questions})
        job, effects = step(matrix.job(), matrix.start(), T0)
        for index in range(questions - 1):
            job, effects = step(job, matrix.completed("all", index), T0)
        assert isinstance(effects[-1], OpenBatch)
        return len(json.dumps(codec.encode(job)))

    assert stored(1_000) - stored(10) < 20, "only the digits of its counters grow"
