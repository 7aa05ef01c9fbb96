"""The real ``parallax`` command as a subprocess, with a home of its own and an endpoint that the test scripts."""

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

PATIENCE_S = 180.0
"""For one command on a machine that is busy with other things."""


def _heed_interrupts() -> None:
    """Undo what a shell does to commands in its background: their children would ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def document(self) -> Any:
        """Standard output as one JSON document."""
        return json.loads(self.out)

    def documents(self) -> list[dict[str, Any]]:
        """Standard output as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Parallax:
    """The command, as one user on one machine types it."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start the command in a process group of its own, as a terminal does."""
        inherited = {n: v for n, v in os.environ.items() if not n.startswith("PARALLAX_") and n != "COLUMNS"}
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "parallax_cli",
            *arguments,
            env={**inherited, "PARALLAX_HOME": str(self.home), **self.environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_heed_interrupts,
        )

    async def ended(self, process: asyncio.subprocess.Process) -> Ended:
        """Wait for the end of a started command."""
        async with asyncio.timeout(PATIENCE_S):
            out, err = await process.communicate()
        assert process.returncode is not None
        return Ended(process.returncode, out.decode(), err.decode())

    async def __call__(self, *arguments: str) -> Ended:
        """Run the command to its end."""
        return await self.ended(await self.start(*arguments))

    async def facts(self, job_id: str) -> list[dict[str, Any]]:
        """Everything recorded of a job."""
        exported = await self("results", job_id, "--format", "jsonl")
        assert exported.code == 0, exported.err
        return exported.documents()

    def database_pid(self) -> int | None:
        """The process id of the home's database server, if it runs."""
        try:
            pid = int((self.home / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0])
            os.kill(pid, 0)
        except (OSError, ValueError):
            return None
        return pid


@asynccontextmanager
async def a_home(**environment: str) -> AsyncIterator[Parallax]:
    """A fresh home; a database that a killed command left running is stopped at the end.

    It is not in pytest's own folder: another session would close that to the user that runs the database for root.
    """
    with tempfile.TemporaryDirectory(prefix="parallax-e2e-") as folder:
        command = Parallax(Path(folder) / "home", environment)
        try:
            yield command
        finally:
            pid = command.database_pid()
            if pid is not None:
                database = psutil.Process(pid)
                database.send_signal(signal.SIGINT)
                database.wait(PATIENCE_S)


def write_catalog(path: Path, url: str, regions: Sequence[str] = ("us", "eu", "apac")) -> Path:
    """A catalog whose regions all send their calls to one endpoint."""
    catalog = {
        "regions": {name: {"name": f"region {name}", "endpoint": f"openai+{url}"} for name in regions},
        "models": {name: {"upstream": name, "regions": list(regions)} for name in ("alpha", "beta")},
    }
    path.write_text(yaml.safe_dump(catalog), encoding="utf-8")
    return path


def write_job(path: Path, questions: int, *, asks: str = "Question", **fields: Any) -> Path:
    """A job of two models in three regions, whose questions read ``ASKS NUMBER?``."""
    job = {
        "name": "e2e",
        "questions": [{"id": f"q{n}", "text": f"{asks} {n}?"} for n in range(questions)],
        "models": [{"id": "alpha"}, {"id": "beta"}],
        "regions": ["us", "eu", "apac"],
        "system_prompt": "You are in {region}.",
        **fields,
    }
    path.write_text(json.dumps(job), encoding="utf-8")
    return path
