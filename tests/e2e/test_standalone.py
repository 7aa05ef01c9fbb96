"""A job on one machine, typed as a user types it: order, budget, interruption, sudden death, and what is said."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from parallax_cli.mock_endpoint import Mock, create_mock, serving
from parallax_cli.mock_script import Rule, Script, Step
from tests.e2e.command import PATIENCE_S, Parallax, a_home, write_catalog, write_job
from tests.harness.results import eventually

FOR_EVER_S = 3_600.0


class Stage:
    """A home, an endpoint, and what the endpoint has seen."""

    def __init__(self, parallax: Parallax, mock: Mock, changed: asyncio.Condition, folder: Path) -> None:
        self.parallax = parallax
        self.mock = mock
        self.folder = folder
        self._changed = changed

    async def seen(self, shows: Callable[[Mock], bool]) -> None:
        """Wait until the endpoint has seen this."""
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(lambda: shows(self.mock))

    async def shown_as_running(self, job_id: str) -> None:
        """Wait until the ledger knows that a job has started: its first answers may be there before."""

        async def listed() -> bool:
            found = await self.parallax("jobs", "--status", "running", "--json")
            return [item["id"] for item in found.document()["items"]] == [job_id]

        await eventually(listed)


@pytest.fixture
def script() -> Script:
    """Every answer takes a moment, so that a batch has a middle."""
    return Script(default=Step(delay_s=0.2))


@pytest.fixture
async def stage(tmp_path: Path, script: Script) -> AsyncIterator[Stage]:
    """A fresh home whose regions all call one scripted endpoint."""
    changed = asyncio.Condition()
    notices: set[asyncio.Task[None]] = set()

    async def tell() -> None:
        async with changed:
            changed.notify_all()

    def note() -> None:
        task = asyncio.get_running_loop().create_task(tell())
        notices.add(task)
        task.add_done_callback(notices.discard)

    app = create_mock(script, note)
    async with serving(app) as url:
        catalog = write_catalog(tmp_path / "catalog.yaml", url)
        async with a_home(PARALLAX_CATALOG=str(catalog), PARALLAX_CONCURRENCY="2") as parallax:
            yield Stage(parallax, app.state.mock, changed, tmp_path)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def assert_one_question_at_a_time(facts: list[dict[str, Any]]) -> None:
    """No execution of a question starts before the last one of the question before it has completed."""
    by_question: dict[int, list[dict[str, Any]]] = {}
    for fact in facts:
        by_question.setdefault(fact["question_index"], []).append(fact)
    for index in range(1, len(by_question)):
        last_end = max(moment(fact["completed_at"]) for fact in by_question[index - 1])
        first_start = min(moment(fact["started_at"]) for fact in by_question[index])
        assert first_start >= last_end, f"question {index} began before {index - 1} was complete"


def most_at_once(facts: list[dict[str, Any]]) -> int:
    """The largest number of executions that ran at the same moment."""
    edges = [(moment(f["started_at"]), 1) for f in facts] + [(moment(f["completed_at"]), -1) for f in facts]
    running = most = 0
    for _, step in sorted(edges):
        running += step
        most = max(most, running)
    return most


async def test_questions_are_asked_one_at_a_time_within_the_budget(stage: Stage) -> None:
    job = write_job(stage.folder / "job.json", 4)
    stage.parallax.environment["PARALLAX_CONCURRENCY"] = "1"
    ended = await stage.parallax("run", str(job), "--job-id", "order")
    assert ended.code == 0, ended.err
    assert "24 completed, 0 failed" in ended.out
    assert "batch 4 [all] done: 6 completed" in ended.out
    assert "\x1b" not in ended.out, "plain lines without a terminal"
    facts = await stage.parallax.facts("order")
    assert len({fact["execution_id"] for fact in facts}) == 24
    assert {fact["status"] for fact in facts} == {"completed"}
    assert_one_question_at_a_time(facts)
    for region in ("us", "eu", "apac"):
        assert most_at_once([fact for fact in facts if fact["region"] == region]) == 1
    assert stage.parallax.database_pid() is None, "nothing is left running"


class TestBarrierPerRegion:
    """A fast region need not wait for a slow one."""

    @pytest.fixture
    def script(self) -> Script:
        """One region answers much later than the others."""
        slow = Rule(contains="in apac", steps=(Step(delay_s=1.0),))
        return Script(rules=(slow,), default=Step(delay_s=0.05))

    async def test_each_region_walks_on_its_own(self, stage: Stage) -> None:
        job = write_job(stage.folder / "job.json", 3, barrier="region")
        ended = await stage.parallax("run", str(job), "--job-id", "lanes", "--json")
        assert ended.code == 0, ended.err
        assert ended.document()["status"] == "completed"
        facts = await stage.parallax.facts("lanes")
        assert len(facts) == 18
        lanes = {region: [fact for fact in facts if fact["region"] == region] for region in ("us", "eu", "apac")}
        for region in lanes.values():
            assert_one_question_at_a_time(region)
        fast_end = max(moment(fact["completed_at"]) for fact in lanes["us"])
        slow_second = min(moment(fact["started_at"]) for fact in lanes["apac"] if fact["question_index"] == 1)
        assert fast_end < slow_second


@pytest.mark.parametrize("way", ["resume", "run again"])
async def test_a_killed_run_is_finished_by_the_next_process(stage: Stage, way: str) -> None:
    job = write_job(stage.folder / "job.json", 6)
    first = await stage.parallax.start("run", str(job), "--job-id", "phoenix")
    await stage.seen(lambda mock: len(mock.calls) > 15)
    first.kill()
    await first.communicate()
    assert stage.parallax.database_pid() is not None, "the database outlives the process"

    listed = await stage.parallax("jobs", "--json")
    assert [(item["id"], item["status"]) for item in listed.document()["items"]] == [("phoenix", "running")]

    again = ("resume", "phoenix") if way == "resume" else ("run", str(job), "--job-id", "phoenix")
    ended = await stage.parallax(*again)
    assert ended.code == 0, ended.out + ended.err
    facts = await stage.parallax.facts("phoenix")
    assert len(facts) == len({fact["execution_id"] for fact in facts}) == 36
    assert {fact["status"] for fact in facts} == {"completed"}
    assert_one_question_at_a_time(facts)
    assert stage.parallax.database_pid() is None, "the adopted database is stopped by its last user"


class TestInterrupted:
    """Ctrl-C while calls are in flight that would never end."""

    @pytest.fixture
    def script(self) -> Script:
        """The first question is answered, every other one never."""
        return Script(rules=(Rule(contains="Question 0", steps=(Step(),)),), default=Step(delay_s=FOR_EVER_S))

    async def test_the_first_ctrl_c_cancels_cleanly(self, stage: Stage) -> None:
        job = write_job(stage.folder / "job.json", 3)
        process = await stage.parallax.start("run", str(job), "--job-id", "stopped")
        await stage.seen(lambda mock: len(mock.calls) == 12)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to every process in the foreground
        ended = await stage.parallax.ended(process)
        assert ended.code == 5, ended.out + ended.err
        assert "cancelled" in ended.out
        await stage.seen(lambda mock: sum(call.aborted_at is not None for call in mock.calls) == 6)
        facts = await stage.parallax.facts("stopped")
        statuses = {index: {f["status"] for f in facts if f["question_index"] == index} for index in (0, 1)}
        assert statuses == {0: {"completed"}, 1: {"cancelled"}}
        assert len(facts) == 12
        assert stage.parallax.database_pid() is None

    async def test_the_second_ctrl_c_leaves_at_once(self, stage: Stage) -> None:
        job = write_job(stage.folder / "job.json", 3)
        process = await stage.parallax.start("run", str(job), "--job-id", "left")
        await stage.seen(lambda mock: len(mock.calls) == 12)
        await stage.shown_as_running("left")
        database = psutil.Process(stage.parallax.database_pid())
        frozen = [database, *database.children()]
        for each in frozen:
            each.suspend()  # now a clean end is impossible: whoever leaves does not wait for it
        waiting = asyncio.create_task(stage.parallax.ended(process))
        while not waiting.done():
            process.send_signal(signal.SIGINT)  # again and again, since signals sent in quick succession may merge
            await asyncio.wait([waiting], timeout=0.5)
        for each in frozen:
            each.resume()
        assert waiting.result().code == 130
        database.wait(PATIENCE_S)  # told to stop by the process that left
        listed = await stage.parallax("jobs", "--json")
        assert [item["status"] for item in listed.document()["items"]] == ["running"]

    async def test_sigterm_leaves_the_job_to_be_resumed(self, stage: Stage) -> None:
        job = write_job(stage.folder / "job.json", 2)
        process = await stage.parallax.start("run", str(job), "--job-id", "paused")
        await stage.seen(lambda mock: len(mock.calls) == 12)
        await stage.shown_as_running("paused")
        process.terminate()
        ended = await stage.parallax.ended(process)
        assert ended.code == 130, ended.out + ended.err
        assert stage.parallax.database_pid() is None
        listed = await stage.parallax("jobs", "--status", "running", "--json")
        assert [item["id"] for item in listed.document()["items"]] == ["paused"]

    async def test_another_terminal_sees_and_cancels_the_job(self, stage: Stage) -> None:
        job = write_job(stage.folder / "job.json", 3)
        process = await stage.parallax.start("run", str(job), "--job-id", "watched")
        await stage.seen(lambda mock: len(mock.calls) == 12)
        shown = await stage.parallax("show", "watched", "--json")
        assert shown.code == 0, shown.err
        assert shown.document()["counts"]["completed"] == 6
        second = await stage.parallax("run", str(job))
        assert second.code == 4
        assert f"in use by process {process.pid}" in second.err
        cancelled = await stage.parallax("cancel", "watched", "--reason", "too slow")
        assert cancelled.code == 0, cancelled.err
        ended = await stage.parallax.ended(process)
        assert ended.code == 5
        assert "too slow" in ended.out

    async def test_a_job_of_a_stopped_home_can_be_cancelled(self, stage: Stage) -> None:
        job = write_job(stage.folder / "job.json", 3)
        process = await stage.parallax.start("run", str(job), "--job-id", "orphan")
        await stage.seen(lambda mock: len(mock.calls) == 12)
        process.kill()
        await process.communicate()
        cancelled = await stage.parallax("cancel", "orphan", "--json")
        assert cancelled.code == 0, cancelled.err
        job_now = cancelled.document()
        assert job_now["status"] == "cancelled"
        assert job_now["counts"]["completed"] == 6
        # Killed between publishing the second batch and committing that, the dispatcher never opened it.
        assert (job_now["counts"]["cancelled"], job_now["not_started"]) in ((6, 6), (0, 12))
        assert len(stage.mock.calls) == 12, "nothing was called to cancel it"


class TestFailing:
    """An endpoint that refuses everything for good."""

    @pytest.fixture
    def script(self) -> Script:
        """What no repetition mends."""
        return Script(default=Step(status=400, message="no such luck \x1b[2J"))

    async def test_a_job_below_its_success_rate_exits_3_and_can_be_retried(self, stage: Stage) -> None:
        job = write_job(stage.folder / "job.json", 1)
        ended = await stage.parallax("run", str(job), "--job-id", "hopeless")
        assert ended.code == 3, ended.err
        assert "below_min_success_rate" in json.dumps((await stage.parallax("show", "hopeless", "--json")).documents())
        table = await stage.parallax("results", "hopeless", "--where", "region=eu status=failed")
        assert "no such luck" in table.out
        assert "\x1b" not in table.out
        stage.mock.script = Script()
        retried = await stage.parallax("retry", "hopeless", "--job-id", "second-chance")
        assert retried.code == 0, retried.err
        assert (await stage.parallax("resume", "second-chance")).code == 0
        assert len(await stage.parallax.facts("second-chance")) == 6
        for options, shown in (((), ("hopeless", "failed")), (("--merged",), ("second-chance", "completed"))):
            matrix = (await stage.parallax("matrix", "hopeless", "--json", *options)).document()
            cells = [execution for cell in matrix["rows"][0]["cells"] for execution in cell["executions"]]
            assert [(cell["job_id"], cell["status"]) for cell in cells] == [shown] * 6


async def test_a_wrong_job_starts_nothing(tmp_path: Path) -> None:
    async with a_home() as parallax:
        job = write_job(tmp_path / "job.json", 1, regions=["us", "mars"], samples=0)
        ended = await parallax("run", str(job))
        assert ended.code == 2
        assert "unknown region 'mars'" in ended.err
        assert "/samples" in ended.err
        assert "nothing was started" in ended.err
        assert not parallax.home.exists()
        as_json = await parallax("validate", str(job), "--json")
        assert as_json.code == 2
        assert {p["pointer"] for p in as_json.document()["error"]["problems"]} >= {"/regions/1", "/samples"}


@pytest.mark.slow
async def test_the_demo_asks_a_real_model_and_can_be_repeated() -> None:
    async with a_home() as parallax:
        for _ in range(2):
            process = await parallax.start("demo")
            async with asyncio.timeout(600):
                out, err = await process.communicate()
            assert process.returncode == 0, err.decode()
            assert b"48 completed, 0 failed" in out
            assert b"simulated" in out
        listed = (await parallax("jobs", "--json")).document()["items"]
        assert [(job["status"], job["counts"]["completed"]) for job in listed] == [("completed", 48)] * 2
        facts = await parallax.facts(listed[0]["id"])
        assert all(fact["output"]["text"].strip() for fact in facts)
        assert_one_question_at_a_time(facts)
