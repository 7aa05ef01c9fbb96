"""What must have become of the jobs of an installation, compared with what did."""

import itertools
import signal
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final
from uuid import UUID

from parallax.contracts.ids import execution_id
from parallax.contracts.job import Barrier, JobSpec, Limits, ModelSelection, Question
from parallax.contracts.plan import JobPlan
from tests.harness.calls import DELAYS_MS, SLOW_MS
from tests.harness.duplicates import Disturbance, Duplicate, ModelCall, Run, duplicates
from tests.harness.installation import REGIONS, Installation
from tests.harness.witness import Witness

CANCEL_SLACK_S: Final = 15.0
"""How long an executor may take to hear of a cancellation, counted from the end of whatever disturbed it."""
AROUND_S: Final = 15.0
"""Disturbances shown beside a duplicate call that nothing explains."""
_FACTS: Final = """
    SELECT execution_id, job_id, status, recorded_at, receipt ->> 'executor_id' AS executor, error ->> 'code' AS code,
           error ->> 'message' AS message
    FROM results.executions WHERE job_id = ANY(:jobs) ORDER BY recorded_at"""


@dataclass(slots=True)
class Accounts:
    """What was asked for, and what is wrong with what became of it."""

    jobs: dict[str, JobSpec] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)

    def executions(self) -> dict[UUID, tuple[str, str]]:
        """Every execution of every job: its job and region."""
        return {
            execution_id(job_id, question.id, *cell): (job_id, cell.region)
            for job_id, spec in self.jobs.items()
            for lane in JobPlan.of(spec).lanes()
            for question in spec.questions
            for cell in JobPlan.of(spec).cells(lane)
        }


@dataclass(slots=True)
class Balance:
    """How the accounts close. Everything but the figures must be zero."""

    jobs: int
    executions: int
    calls: int
    duplicates_explained: int
    """Runs that were needed because an executor was killed or lost its connection."""
    longest_stall_s: float
    by_status: Counter[str]
    exits: list[str]
    """Replicas that ended by themselves, or badly."""
    hung: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    doubled: int = 0
    wrong_region: list[str] = field(default_factory=list)
    started_after_cancel: list[str] = field(default_factory=list)
    told_wrong: list[str] = field(default_factory=list)
    duplicates_unexplained: list[str] = field(default_factory=list)
    dead_letters: list[str] = field(default_factory=list)
    """Nothing poisonous was sent, so there may be none."""
    crashed: list[str] = field(default_factory=list)
    """Replicas that ended with a traceback, or had to be killed when they were told to leave."""

    @property
    def faults(self) -> dict[str, int]:
        """How much of what must not be there is there."""
        return {
            "hung": len(self.hung),
            "lost": len(self.lost),
            "doubled": self.doubled,
            "wrong region": len(self.wrong_region),
            "started after cancel": len(self.started_after_cancel),
            "told wrong": len(self.told_wrong),
            "duplicate calls unexplained": len(self.duplicates_unexplained),
            "dead letters": len(self.dead_letters),
            "crashed": len(self.crashed),
        }


def draw_job(random: Random, name: str, *, questions: int = 3, slow: bool = False) -> JobSpec:
    """A job of answers that take 50 to 500 ms; some of them 4 s, if they may be slow."""
    kinds = [f"delay {ms} ms" for ms in (*DELAYS_MS, *([SLOW_MS] if slow else []))] + ["flaky"]
    return JobSpec(
        name=name,
        questions=tuple(
            Question(id=f"q{n}", text=f"{random.choice(kinds)}: question {n} of {name}") for n in range(questions)
        ),
        models=(ModelSelection(id="a", model="mock"), ModelSelection(id="b", model="mock")),
        regions=REGIONS,
        barrier=random.choice(tuple(Barrier)),
        limits=Limits(attempt_timeout_s=20.0, max_attempts=5, batch_deadline_s=180.0, job_deadline_s=600.0),
    )


async def settle(installation: Installation, accounts: Accounts, witness: Witness | None = None) -> Balance:
    """Compare the ledger, what users saw and what models saw with what was asked for, once every job has ended."""
    planned = accounts.executions()
    facts = await installation.rows(_FACTS, jobs=list(accounts.jobs))
    seen = {row["job_id"]: row for row in await installation.rows("SELECT * FROM results.jobs")}
    states = {row["id"]: row["phase"] for row in await installation.rows("SELECT id, phase FROM dispatcher.jobs")}
    calls = [call for call in installation.calls() if call.execution_id in planned]
    recorded = {row["execution_id"]: (row["executor"] or "", row["recorded_at"].timestamp()) for row in facts}
    disturbances = installation.disturbances
    twice = duplicates(calls, disturbances, recorded)
    exits = installation.exits
    balance = Balance(
        jobs=len(accounts.jobs),
        executions=len(planned),
        calls=len(calls),
        duplicates_explained=sum(duplicate.cause is not None for duplicate in twice),
        longest_stall_s=_longest_gap([row["recorded_at"].timestamp() for row in facts]),
        by_status=Counter(row["status"] for row in facts),
        exits=[str(end) for end in exits],
        hung=[job for job in accounts.jobs if states.get(job) != "finished"],
        doubled=len(facts) - len(recorded),
    )
    balance.wrong_region = [str(c.execution_id) for c in calls if c.region != planned[c.execution_id][1]]
    balance.lost = [
        str(key) for key, (job, _) in planned.items() if key not in recorded and job not in accounts.cancelled
    ]
    balance.told_wrong = _told_wrong(accounts, seen, witness)
    ends = {job: row["finished_at"].timestamp() for job, row in seen.items() if row["finished_at"]}
    balance.started_after_cancel = [
        f"{call.execution_id} of {job} on {call.executor}, {call.received_at - ends[job]:.1f} s after the end"
        for call in calls
        if (job := planned[call.execution_id][0]) in accounts.cancelled and job in ends
        if started_late(call, ends[job], disturbances)
    ]
    balance.duplicates_unexplained = [
        story(each, planned[each.execution_id], recorded.get(each.execution_id), disturbances, installation.began_at)
        for each in twice
        if each.cause is None
    ]
    balance.dead_letters = [f"{row['execution_id']}: {row['message']}" for row in facts if row["code"] == "dead_letter"]
    balance.dead_letters += witness.dead_letters if witness is not None else []
    balance.crashed = [str(end) for end in exits if end.crashed or end.code == -signal.SIGKILL]
    return balance


def started_late(call: ModelCall, ended_at: float, disturbances: Iterable[Disturbance]) -> bool:
    """Whether a call of a cancelled job began although its executor had had time to hear of the end."""
    after = ended_at
    for each in disturbances:
        if each.strikes(call.replica) and each.overlaps(ended_at, call.received_at):
            after = max(after, each.ended_at)
    return call.received_at > after + CANCEL_SLACK_S


def story(
    duplicate: Duplicate,
    of: tuple[str, str],
    recorded: tuple[str, float] | None,
    disturbances: Collection[Disturbance],
    zero: float,
) -> str:
    """A duplicate call told in full, in seconds since the installation began."""
    first, again = duplicate.first, duplicate.again
    lines = [f"execution {duplicate.execution_id} of {of[0]} in {of[1]}"]
    lines += [f"  {_told(name, run, zero)}" for name, run in (("called", first), ("called again", again))]
    if recorded is not None:
        lines.append(f"  recorded {recorded[1] - zero:.2f} s, by {recorded[0] or 'nobody'}")
    lines += [
        f"  {each.cause} {each.began_at - zero:.2f} to {each.ended_at - zero:.2f} s: "
        f"{'everything' if each.replicas is None else ', '.join(sorted(each.replicas))}"
        for each in disturbances
        if each.overlaps(first.began_at - AROUND_S, again.began_at)
    ]
    return "\n".join(lines)


def _told(name: str, run: Run, zero: float) -> str:
    calls = ", ".join(f"attempt {call.attempt} {call.received_at - zero:.2f} s ({_ending(call)})" for call in run.calls)
    return f"{name} by {run.executor}: {calls}"


def _ending(call: ModelCall) -> str:
    if call.aborted_at is not None:
        return "aborted"
    return "failed" if call.failed else "answered" if call.finished_at is not None else "open"


def _told_wrong(accounts: Accounts, seen: Mapping[str, Mapping[str, Any]], witness: Witness | None) -> list[str]:
    wrong = []
    for job in accounts.jobs:
        allowed = {"completed", "cancelled"} if job in accounts.cancelled else {"completed"}
        status = seen[job]["status"] if job in seen else "unknown"
        found = [] if status in allowed else [f"it is shown as {status}"]
        found += witness.contradictions(job) if witness is not None else []
        wrong += [f"{job}: {each}" for each in found]
    return wrong


def _longest_gap(moments: list[float]) -> float:
    return max((later - earlier for earlier, later in itertools.pairwise(moments)), default=0.0)
