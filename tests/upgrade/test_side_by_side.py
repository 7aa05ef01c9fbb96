"""Services of two versions side by side on one broker and one database, forwards and back again.

``BASE`` names the earliest commit whose services must work beside today's. A change that breaks this on purpose, before
a first release, sets it to a later one.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest

from parallax.contracts.messages import KINDS, decode, encode
from tests.harness.accounts import Accounts, draw_job, settle
from tests.harness.installation import Installation, installation
from tests.harness.rabbitmq import Node
from tests.harness.sources import earlier, environment_of, in_history, later, migrated
from tests.unit.contracts.samples import SAMPLES

BASE = (Path(__file__).parent / "BASE").read_text(encoding="utf-8").strip()

with_history = pytest.mark.skipif(not in_history(BASE), reason=f"commit {BASE} is not in this clone's history")

_ENDED = "SELECT outcome IS NOT NULL FROM results.jobs WHERE job_id = :job"
_EXCHANGE = """
import json, sys
from parallax.contracts.messages import KINDS, decode, encode
from tests.unit.contracts.samples import SAMPLES
for line in sys.stdin:
    if json.loads(line)["kind"] in KINDS:
        decode(line.encode())
for sample in SAMPLES:
    print(encode(sample).decode())
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that the database server can enter, which runs as somebody else: pytest closes its own to others."""
    with TemporaryDirectory(prefix="parallax-upgrade-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def exchange_messages(sources: Path) -> None:
    """Let another version read every message of this one, and read every message of the other one."""
    ours = b"\n".join(encode(sample) for sample in SAMPLES)
    environment = environment_of(sources)
    done = subprocess.run(
        [sys.executable, "-c", _EXCHANGE], input=ours, env=environment, cwd=sources, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    theirs = [line for line in done.stdout.splitlines() if json.loads(line)["kind"] in KINDS]
    assert len({decode(line).kind for line in theirs}) == len(theirs) >= 10


@with_history
def test_messages_of_the_base_version_are_read_and_read_ours(tmp_path: Path) -> None:
    exchange_messages(earlier(BASE, tmp_path / "base"))


def test_messages_of_a_later_version_are_read_and_read_ours(tmp_path: Path) -> None:
    exchange_messages(later(tmp_path / "later"))


class RollOut:
    """An installation whose services are replaced, one kind after the other, while jobs run."""

    def __init__(self, made: Installation) -> None:
        self.made = made
        self.accounts = Accounts()

    async def submit(self, count: int = 1) -> list[str]:
        """Jobs that run from now on, through whatever happens."""
        jobs = [f"job-{len(self.accounts.jobs)}-{uuid4().hex[:6]}" for _ in range(count)]
        for job in jobs:
            self.accounts.jobs[job] = draw_job(Random(len(self.accounts.jobs)), job, questions=3)
            await self.made.submit(job, self.accounts.jobs[job])
        return jobs

    async def ended(self, jobs: list[str]) -> None:
        """Wait until the jobs have ended."""
        for job in jobs:
            await self.made.wait_for(_ENDED, job=job)

    async def leave(self, names: tuple[str, ...]) -> None:
        """Stop replicas, one kind after the other, each in good order."""
        for kind in ("results", "dispatcher", "executor"):
            leaving = [self.made.remove(name) for name in names if name.startswith(kind)]
            assert await asyncio.gather(*leaving) == [0] * len(leaving), kind

    async def come_back(self, names: tuple[str, ...]) -> None:
        """Start replicas again that left."""
        for name in names:
            self.made.bring_back(name)
        await self.made.ready(names)


async def roll(made: Installation, new: Path | None) -> RollOut:
    """From one version to another, back, and forwards for good."""
    rolling = RollOut(made)
    old = made.services
    await rolling.ended(await rolling.submit())

    jobs = await rolling.submit()
    await migrated(made.postgres.url, "--before", sources=new)
    fresh = tuple(made.add_version(name, "new", new) for name in old)
    await made.ready(fresh)
    jobs += await rolling.submit()  # both versions are at work
    await rolling.ended(jobs)

    jobs = await rolling.submit()
    await rolling.leave(old)
    await rolling.ended([*jobs, *await rolling.submit()])

    jobs = await rolling.submit()  # roll back: the old version on the newer schema
    await rolling.come_back(old)
    await rolling.leave(fresh)
    await rolling.ended([*jobs, *await rolling.submit()])

    jobs = await rolling.submit()
    await rolling.come_back(fresh)
    await rolling.leave(old)
    await migrated(made.postgres.url, "--after", sources=new)
    await rolling.ended([*jobs, *await rolling.submit()])
    return rolling


async def assert_nothing_went_wrong(rolling: RollOut) -> None:
    balance = await settle(rolling.made, rolling.accounts)
    assert not any(balance.faults.values()), balance
    assert balance.by_status == {"completed": balance.executions}, "every execution exactly once, with its answer"
    assert balance.exits == [], "no service ended by itself"


@with_history
@pytest.mark.rabbitmq
@pytest.mark.slow
async def test_from_the_base_version_to_this_one_and_back(place: Path, rabbitmq_node: Node) -> None:
    base = earlier(BASE, place / "base")
    namespace = f"upgrade-{uuid4().hex[:8]}"
    async with installation(place, rabbitmq_node, namespace=namespace, sources=base) as made:
        await assert_nothing_went_wrong(await roll(made, None))


@pytest.mark.rabbitmq
@pytest.mark.slow
async def test_from_this_version_to_a_later_one_and_back(place: Path, rabbitmq_node: Node) -> None:
    tomorrow = later(place / "later")
    namespace = f"upgrade-{uuid4().hex[:8]}"
    async with installation(place, rabbitmq_node, namespace=namespace) as made:
        await assert_nothing_went_wrong(await roll(made, tomorrow))
        extended = "SELECT count(*) AS n FROM information_schema.columns WHERE column_name = 'tomorrow'"
        assert (await made.rows(extended))[0]["n"] >= 8
        told = "SELECT data ->> 'tomorrow' AS told FROM results.events WHERE kind = 'job.finished'"
        assert {row["told"] for row in await made.rows(told)} == {None, "new"}, "both versions have written"
