"""Real processes whose database or broker vanishes without a word: unready, gone, or stopped, each in time.

Bounds are those that users are promised; processes get a little longer, for a machine that does other things too.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from parallax.watchdog import EXIT_INTERNAL
from parallax_cli.children import free_port
from parallax_cli.schemas import migrate_all
from tests.harness.postgres import through_tcp
from tests.harness.proxy import Proxy, proxy
from tests.harness.rabbitmq import Node

pytestmark = [pytest.mark.rabbitmq, pytest.mark.slow]

LOST_AFTER_S: Final = 8
GRACE_S: Final = 3
SLACK_S: Final = 10
UNREADY_WITHIN_S: Final = 15
ANSWER_WITHIN_S: Final = 6


@dataclass(frozen=True)
class Service:
    """A service in a process of its own, behind proxies that can silence its servers."""

    process: asyncio.subprocess.Process
    port: int
    wires: Mapping[str, Proxy]
    log: Path

    async def readiness(self) -> bool:
        """What it says of itself, in time."""
        async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_WITHIN_S + SLACK_S) as client:
            answer = await client.get(f"http://127.0.0.1:{self.port}/readyz")
        assert answer.elapsed.total_seconds() < ANSWER_WITHIN_S + 2
        return answer.is_success

    async def is_ready(self, expected: bool, within_s: float) -> float:
        """Wait until it is ready or not; how long that took."""
        began = time.monotonic()
        while True:
            try:
                if await self.readiness() is expected:
                    return time.monotonic() - began
            except httpx.TransportError:
                assert self.process.returncode is None, self.log.read_text()
            assert time.monotonic() - began < within_s, self.log.read_text()
            await asyncio.sleep(0.1)

    async def ended(self, within_s: float) -> int:
        """Its exit code, which comes in time."""
        try:
            return await asyncio.wait_for(self.process.wait(), within_s)
        except TimeoutError:
            raise AssertionError(f"it still runs after {within_s} s\n{self.log.read_text()}") from None


@asynccontextmanager
async def serving(
    name: str, folder: Path, node: Node, database_url: str, *, lost_after_s: float = LOST_AFTER_S
) -> AsyncIterator[Service]:
    async with AsyncExitStack() as stack:
        target = urlsplit(node.url)
        broker = await stack.enter_async_context(proxy(str(target.hostname), target.port or 5672))
        database, url = await stack.enter_async_context(through_tcp(database_url))
        catalog = folder / "catalog.yaml"
        catalog.write_text(yaml.safe_dump({"regions": {"us": {"name": "us", "endpoint": "openai+http://127.0.0.1:1/v1"}},
                                           "models": {"mock": {"upstream": "mock", "regions": ["us"]}}}))  # fmt: skip
        port = free_port()
        environment = {
            **os.environ,
            "PARALLAX_AMQP_URL": node.url.replace(f":{target.port}", f":{broker.port}"),
            "PARALLAX_DATABASE_URL": url,
            "PARALLAX_NAMESPACE": f"silence-{folder.name}",
            "PARALLAX_CATALOG": str(catalog),
            "PARALLAX_REGION": "us",
            "PARALLAX_HTTP": f"127.0.0.1:{port}",
            "PARALLAX_LOG": "json",
            "PARALLAX_LOST_AFTER_S": str(lost_after_s),
            "PARALLAX_GRACE_S": str(GRACE_S),
        }
        log = folder / "log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", name, env=environment, stdout=output, stderr=output
            )
        stack.push_async_callback(_kill, process)
        service = Service(process, port, {"broker": broker, "database": database}, log)
        await service.is_ready(True, within_s=180)
        yield service


async def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()


@pytest.fixture
async def migrated_url(database_url: str) -> str:
    """A database with every schema."""
    await migrate_all(database_url)
    return database_url


CASES = [("results", "database"), ("results", "broker"), ("dispatcher", "database"), ("executor", "broker")]


@pytest.mark.parametrize(("name", "server"), CASES)
async def test_a_silent_server_is_noticed_and_then_given_up(
    name: str, server: str, tmp_path: Path, rabbitmq_node: Node, migrated_url: str
) -> None:
    async with serving(name, tmp_path, rabbitmq_node, migrated_url) as service:
        service.wires[server].silence()
        began = time.monotonic()
        await service.is_ready(False, within_s=UNREADY_WITHIN_S + SLACK_S)
        # A silent broker is not asked, but noticed by its missing heartbeats.
        noticed_s = UNREADY_WITHIN_S if server == "broker" else 0
        code = await service.ended(noticed_s + LOST_AFTER_S + 15 + SLACK_S - (time.monotonic() - began))
        assert code == EXIT_INTERNAL, service.log.read_text()


@pytest.mark.parametrize(("name", "server"), CASES)
async def test_a_signal_ends_a_process_whose_server_is_silent(
    name: str, server: str, tmp_path: Path, rabbitmq_node: Node, migrated_url: str
) -> None:
    async with serving(name, tmp_path, rabbitmq_node, migrated_url, lost_after_s=600) as service:
        service.wires[server].silence()
        await asyncio.sleep(2)  # a probe is in its midst
        service.process.send_signal(signal.SIGTERM)
        await service.ended(60 if name == "executor" else 40)


async def test_a_process_that_was_stopped_goes_on(tmp_path: Path, rabbitmq_node: Node, migrated_url: str) -> None:
    async with serving("results", tmp_path, rabbitmq_node, migrated_url, lost_after_s=4) as service:
        service.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(8)
        service.process.send_signal(signal.SIGCONT)
        await service.is_ready(True, within_s=30)
        await asyncio.sleep(3)  # rounds of probes that could still give up
        assert service.process.returncode is None, service.log.read_text()
        service.process.send_signal(signal.SIGTERM)
        assert await service.ended(GRACE_S + 30) == 0, service.log.read_text()


async def test_a_database_that_is_silent_from_the_start_is_waited_for(
    tmp_path: Path, rabbitmq_node: Node, migrated_url: str
) -> None:
    async with serving("results", tmp_path, rabbitmq_node, migrated_url, lost_after_s=60) as service:
        service.wires["database"].silence()
        await service.is_ready(False, within_s=UNREADY_WITHIN_S + SLACK_S)
        service.wires["database"].cut()
        service.wires["database"].speak()
        await service.is_ready(True, within_s=UNREADY_WITHIN_S + SLACK_S)
