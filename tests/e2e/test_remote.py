"""The commands against an installation that runs elsewhere, over HTTP, with a connection that breaks."""

import asyncio
import csv
import io
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from parallax_cli.mock_endpoint import create_mock, serving
from parallax_cli.mock_script import Rule, Script, Step
from tests.e2e.command import PATIENCE_S, Parallax, a_home, write_catalog, write_job


class Wire:
    """A TCP port that leads to a Unix socket, and can be cut."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: set[asyncio.StreamWriter] = set()
        self.url = ""

    def cut(self) -> None:
        """Break every connection there is."""
        for writer in self._open:
            writer.transport.abort()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        far_reader, far_writer = await asyncio.open_unix_connection(self._path)
        self._open |= {writer, far_writer}
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        finally:
            self._open -= {writer, far_writer}


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while part := await reader.read(65_536):
            writer.write(part)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def wired(path: Path) -> AsyncIterator[Wire]:
    """A wire while the block runs."""
    wire = Wire(path)
    server = await asyncio.start_server(wire.carry, "127.0.0.1", 0)
    wire.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield wire
    finally:
        server.close()
        wire.cut()


@asynccontextmanager
async def an_installation(folder: Path) -> AsyncIterator[tuple[Wire, asyncio.subprocess.Process]]:
    """An installation kept busy by a job that never ends by itself, and a wire to its API."""
    script = Script(rules=(Rule(contains="Question 0", steps=(Step(delay_s=3_600),)),), default=Step(delay_s=0.3))
    async with serving(create_mock(script)) as endpoint:
        catalog = write_catalog(folder / "catalog.yaml", endpoint)
        async with a_home(PARALLAX_CATALOG=str(catalog), PARALLAX_CONCURRENCY="8") as parallax:
            holder = await parallax.start("run", str(write_job(folder / "holder.json", 1)), "--job-id", "holder")
            assert holder.stdout is not None
            async with asyncio.timeout(PATIENCE_S):
                assert (await holder.stdout.readline()).startswith(b"job holder")
            async with wired(parallax.home / "api.sock") as wire:
                yield wire, holder
                if holder.returncode is None:
                    holder.send_signal(signal.SIGINT)
                await parallax.ended(holder)


async def test_a_running_installation_is_used_over_http(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job.json", 4, asks="Anything else")
    async with an_installation(tmp_path) as (wire, holder):
        remote = Parallax(tmp_path / "no-home", {"PARALLAX_API": wire.url})
        valid = await remote("validate", str(job), "--json")
        assert (valid.code, valid.document()["executions"]) == (0, 24), valid.err

        watching = await remote.start("submit", str(job), "--watch", "--job-id", "sent")
        assert watching.stdout is not None
        said: list[str] = []
        async with asyncio.timeout(PATIENCE_S):
            while not (said and said[-1].startswith("batch 1")):
                said.append((await watching.stdout.readline()).decode())
        wire.cut()
        ended = await remote.ended(watching)
        assert ended.code == 0, ended.out + ended.err
        lines = "".join(said) + ended.out
        assert [lines.count(f"batch {n} [all] done: 6 completed") for n in (1, 2, 3, 4)] == [1, 1, 1, 1]
        assert "24 completed, 0 failed" in lines

        matrix = (await remote("matrix", "sent", "--json")).document()
        assert [row["question_id"] for row in matrix["rows"]] == ["q0", "q1", "q2", "q3"]
        regions = (await remote("regions", "--json")).document()["regions"]
        assert {(r["id"], len(r["executors"]), r["budget"]) for r in regions} == {
            (n, 1, 8) for n in ("us", "eu", "apac")
        }
        exported = await remote("results", "sent", "--format", "csv", "--where", "region=eu model=alpha")
        assert len(list(csv.DictReader(io.StringIO(exported.out)))) == 4

        again = await remote("submit", str(job), "--job-id", "sent", "--json")
        assert (again.code, again.document()["status"]) == (0, "completed")
        other = await remote("submit", str(write_job(tmp_path / "other.json", 2)), "--job-id", "sent")
        assert other.code == 2
        assert "belongs to a job with other content" in other.err

        leaving = await remote.start("watch", "holder")
        assert leaving.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            assert (await leaving.stdout.readline()).startswith(b"accepted")
        leaving.send_signal(signal.SIGINT)
        assert (await remote.ended(leaving)).code == 130
        assert holder.returncode is None, "whoever watches may leave"
        assert (await remote("cancel", "holder", "--reason", "enough")).code == 0
        assert await asyncio.wait_for(holder.wait(), PATIENCE_S) == 5
        assert not (tmp_path / "no-home").exists()


async def test_an_installation_that_is_not_there(tmp_path: Path) -> None:
    remote = Parallax(tmp_path / "no-home", {"PARALLAX_API": "http://127.0.0.1:9"})
    ended = await remote("jobs")
    assert ended.code == 4
    assert "http://127.0.0.1:9 cannot be reached" in ended.err
    unknown = await Parallax(tmp_path / "no-home")("submit", str(write_job(tmp_path / "job.json", 1)))
    assert unknown.code == 2
    assert "no installation given" in unknown.err
