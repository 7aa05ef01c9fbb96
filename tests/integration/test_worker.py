"""Work on one document in a process of its own: what it may cost, how it ends, and what that says of the document."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from parallax.errors import UnavailableError
from parallax.worker.process import Limits, Worker, WorkerFailedError

PATIENCE_S = 60.0


def worker(work: str, limits: Limits | None = None) -> Worker:
    return Worker(f"tests.fakes.documents:{work}", limits=limits)


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "parallax.worker" in child.cmdline()]


def written_pid(file: Path) -> int | None:
    return int(file.read_text()) if file.exists() and file.read_text() else None


async def pid_in(file: Path) -> int:
    async with asyncio.timeout(PATIENCE_S):
        while (pid := written_pid(file)) is None:  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.02)
    return pid


async def gone(pid: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)


async def test_what_the_work_yields_comes_back_whatever_it_prints() -> None:
    document = os.urandom(5_000_000)
    assert await worker("echo").run(b"argument", document) == [b"argument", document]
    assert children() == []


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not count this memory")
async def test_a_document_that_takes_too_much_memory_fails() -> None:
    with pytest.raises(WorkerFailedError, match="takes more than 100 MiB of memory"):
        await worker("devour", Limits(memory_bytes=100 * 2**20)).run(b"", b"")


async def test_a_document_that_takes_too_long_fails_and_its_process_is_ended(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    work = asyncio.create_task(worker("stall", Limits(time_s=10)).run(os.fsencode(file), b""))
    pid = await pid_in(file)
    with pytest.raises(WorkerFailedError, match="takes longer than 10 s"):
        await work
    await gone(pid)


@pytest.mark.parametrize("work", ["die", "fail"])
async def test_a_process_that_ends_before_its_work_is_done_fails_the_document(work: str) -> None:
    with pytest.raises(WorkerFailedError, match="the process that checked it failed"):
        await worker(work).run(b"", b"document")


async def test_a_worker_that_is_killed_from_outside_fails_the_document(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    work = asyncio.create_task(worker("stall").run(os.fsencode(file), b""))
    os.kill(await pid_in(file), signal.SIGKILL)
    with pytest.raises(WorkerFailedError):
        await work


async def test_a_stop_of_the_service_is_no_fault_of_the_document(tmp_path: Path) -> None:
    """Signals that reach every process of a service leave the worker to its parent, which gives it up."""
    file = tmp_path / "pid"
    work = asyncio.create_task(worker("stall").run(os.fsencode(file), b""))
    pid = await pid_in(file)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    done, _ = await asyncio.wait([work], timeout=1)
    assert not done
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await gone(pid)


@pytest.mark.parametrize("target", ["tests.fakes.documents:absent", "no.such.module:work"])
async def test_a_worker_that_cannot_begin_says_nothing_of_the_document(target: str) -> None:
    with pytest.raises(UnavailableError):
        await Worker(target).run(b"", b"x" * 1_000_000)


async def test_a_worker_that_cannot_be_started_says_nothing_of_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/interpreter")
    with pytest.raises(UnavailableError):
        await worker("echo").run(b"", b"")


async def test_documents_are_worked_on_one_at_a_time(tmp_path: Path) -> None:
    shared = worker("stall")
    first = asyncio.create_task(shared.run(os.fsencode(tmp_path / "first"), b""))
    second = asyncio.create_task(shared.run(os.fsencode(tmp_path / "second"), b""))
    pid = await pid_in(tmp_path / "first")
    assert [child.pid for child in children()] == [pid]
    first.cancel()
    assert await pid_in(tmp_path / "second") != pid
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)


PARENT = """
import asyncio, sys
from parallax.worker.process import Limits, Worker
limits = Limits(time_s=float(sys.argv[2]))
asyncio.run(Worker("tests.fakes.documents:stall", limits=limits).run(sys.argv[1].encode(), b""))
"""


async def test_a_worker_does_not_outlive_a_killed_parent_for_long(tmp_path: Path) -> None:
    file, root = tmp_path / "pid", Path(__file__).parents[2]
    began = time.monotonic()
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, str(file), "5", cwd=root)
    pid = await pid_in(file)
    parent.kill()
    await parent.wait()
    await gone(pid)
    assert time.monotonic() - began < PATIENCE_S
