"""What must have become of the jobs of an installation, compared with what did."""

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final
from uuid import UUID

from parallax.contracts.ids import execution_id
from parallax.contracts.job import Barrier, JobSpec, Limits, ModelSelection, Question
from parallax.contracts.plan import JobPlan
from tests.harness.installation import DELAYS_MS, REGIONS, Installation

CANCEL_SLACK_S: Final = 15.0
"""A paused or cut off executor hears of a cancellation when it is back; blows last no longer than this."""


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
    duplicate_calls: int
    longest_stall_s: float
    by_status: Counter[str]
    hung: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    doubled: int = 0
    wrong_region: list[str] = field(default_factory=list)
    started_after_cancel: list[str] = field(default_factory=list)
    told_wrong: list[str] = field(default_factory=list)

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
        }


def draw_job(random: Random, name: str, *, questions: int = 3) -> JobSpec:
    """A job of answers that take 50 to 500 ms."""
    kinds = [f"delay {ms} ms" for ms in DELAYS_MS] + ["flaky"]
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


async def settle(installation: Installation, accounts: Accounts) -> Balance:
    """Compare the ledger and what users see with what was asked for, once every job has ended."""
    planned = accounts.executions()
    facts = await installation.rows(
        "SELECT * FROM results.executions WHERE job_id = ANY(:jobs) ORDER BY recorded_at", jobs=list(accounts.jobs)
    )
    seen = {row["job_id"]: row for row in await installation.rows("SELECT * FROM results.jobs")}
    states = {row["id"]: row["phase"] for row in await installation.rows("SELECT id, phase FROM dispatcher.jobs")}
    calls = [call for call in installation.calls() if call.execution_id in planned]
    tries = {row["execution_id"]: row["attempt_count"] for row in facts}
    made = Counter(call.execution_id for call in calls)
    balance = Balance(
        jobs=len(accounts.jobs),
        executions=len(planned),
        calls=len(calls),
        duplicate_calls=sum(max(0, count - max(1, tries.get(key) or 1)) for key, count in made.items()),
        longest_stall_s=_longest_gap([row["recorded_at"].timestamp() for row in facts]),
        by_status=Counter(row["status"] for row in facts),
        hung=[job for job in accounts.jobs if states.get(job) != "finished"],
        doubled=len(facts) - len({row["execution_id"] for row in facts}),
    )
    recorded = {row["execution_id"] for row in facts}
    balance.wrong_region = [str(c.execution_id) for c in calls if c.region != planned[c.execution_id][1]]
    balance.lost = [
        str(key) for key, (job, _) in planned.items() if key not in recorded and job not in accounts.cancelled
    ]
    balance.told_wrong = [job for job in accounts.jobs if not _told_right(job, accounts, seen)]
    ends = {job: row["finished_at"].timestamp() for job, row in seen.items() if row["finished_at"]}
    balance.started_after_cancel = [
        str(call.execution_id)
        for call in calls
        if (job := planned[call.execution_id][0]) in accounts.cancelled
        and call.received_at > ends.get(job, float("inf")) + CANCEL_SLACK_S
    ]
    return balance


def _told_right(job: str, accounts: Accounts, seen: Mapping[str, Mapping[str, Any]]) -> bool:
    if job not in seen:
        return False
    allowed = {"completed", "cancelled"} if job in accounts.cancelled else {"completed"}
    return seen[job]["status"] in allowed


def _longest_gap(moments: list[float]) -> float:
    return max((later - earlier for earlier, later in itertools.pairwise(moments)), default=0.0)
