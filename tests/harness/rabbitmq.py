"""A RabbitMQ node for the test session, that tests may also stop, kill and cut.

Where it comes from: ``PARALLAX_TEST_AMQP_URL`` if set, else a container if a Docker engine answers, else a native
node of our own (its own name, ports, port mapper, cookie and data folder; the system's node is never touched).
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import uuid4

import aiormq
import pytest

from parallax.contracts.routing import region_queues, topology
from parallax_cli.children import Children, answers, free_ports
from parallax_cli.rabbitmq_node import Installed, LocalNode, find_installed

REGIONS = ("us", "eu", "apac")
"""The regions tests use on a real broker; ``delete_namespace`` knows their queues."""
MODELS: Final = ("mock", "throttled", "org.model-1.5")
"""The models of those regions, each of which may have a waiting queue."""
START_TIMEOUT_S = 120.0
"""A node boots in 5 s on an idle machine; tests share theirs."""
LIMITS = """
vm_memory_high_watermark.absolute = 2GB
disk_free_limit.absolute = 50MB
"""


class Node(Protocol):
    """A broker that tests may maltreat."""

    @property
    def url(self) -> str:
        """Where clients connect."""
        ...

    def ctl(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` on the node and return what it printed."""
        ...

    def start(self) -> None:
        """Start the node on the data it has; return when clients can connect."""
        ...

    def stop(self) -> None:
        """Stop the node in good order."""
        ...

    def kill(self) -> None:
        """Stop the node as a power cut would."""
        ...

    def wipe(self) -> None:
        """Lose the disk of a stopped node."""
        ...


class GivenNode:
    """Somebody else's broker: it can be used, not maltreated."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ctl(self, *arguments: str) -> str:
        """Not ours to control."""
        pytest.skip(f"the broker of PARALLAX_TEST_AMQP_URL is not ours: {' '.join(arguments)}")

    def start(self) -> None:
        """Not ours to control."""
        self.ctl("start")

    def stop(self) -> None:
        """Not ours to control."""
        self.ctl("stop")

    def kill(self) -> None:
        """Not ours to control."""
        self.ctl("kill")

    def wipe(self) -> None:
        """Not ours to control."""
        self.ctl("wipe")


class NativeNode:
    """A node made of local processes: a port mapper and ``rabbitmq-server``."""

    def __init__(self, folder: Path, installed: Installed) -> None:
        port, mapper_port, dist_port = free_ports(3)
        self.node = LocalNode(
            installed=installed,
            folder=folder,
            name=f"parallax-test-{uuid4().hex[:8]}@localhost",
            port=port,
            mapper_port=mapper_port,
            dist_port=dist_port,
            limits=LIMITS,
            erlang="+S 2:2 +sbwt none",
        )
        self.url = self.node.url
        self._children = Children()
        self._mapper: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self.node.configure()

    def start(self) -> None:
        """Start the node on the data it has; return when clients can connect."""
        if self._mapper is None:
            self._mapper = self.node.start_mapper(self._children)
            wait_for_port(self.node.mapper_port, self._mapper)
        self._server = self.node.start_server(self._children)
        wait_for_port(self.node.port, self._server)

    def stop(self) -> None:
        """Stop the node in good order."""
        self.ctl("shutdown")
        self.kill()

    def kill(self) -> None:
        """Stop the node as a power cut would."""
        if self._server is None:
            return
        self._children.kill(self._server)
        self._server = None
        wait_until(lambda: not answers(self.node.port), "the end of the node")

    def wipe(self) -> None:
        """Lose the disk of a stopped node."""
        assert self._server is None, "stop the node first"
        shutil.rmtree(self.node.data)

    def dispose(self) -> None:
        """End every process of the node."""
        self.kill()
        if self._mapper is not None:
            self._children.kill(self._mapper)
            self._mapper = None
        self._children.close()

    def ctl(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` on the node and return what it printed."""
        done = subprocess.run(
            self.node.control(*arguments),
            env=self.node.environment(),
            cwd=self.node.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode != 0:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {done.stderr or done.stdout}")
        return done.stdout


class ContainerNode:
    """A node in a container, on a port that stays the same when it is restarted."""

    IMAGE = "rabbitmq:4-alpine"

    def __init__(self) -> None:
        from testcontainers.core.container import DockerContainer

        (port,) = free_ports(1)
        self._port = port
        self.url = f"amqp://guest:guest@127.0.0.1:{port}/"
        self._container: Any = DockerContainer(self.IMAGE, hostname="parallax-test").with_bind_ports(5672, port)
        self._created = False

    def start(self) -> None:
        """Start the node on the data it has; return when clients can connect."""
        if self._created:
            self._container.get_wrapped_container().start()
        else:
            self._container.start()
            self._created = True
        wait_until(self._booted, "the container's broker")

    def stop(self) -> None:
        """Stop the node in good order."""
        self._container.get_wrapped_container().stop(timeout=60)

    def kill(self) -> None:
        """Stop the node as a power cut would."""
        self._container.get_wrapped_container().kill()

    def wipe(self) -> None:
        """A stopped container keeps its disk: not offered."""
        pytest.skip("a container's broker keeps its disk")

    def dispose(self) -> None:
        """Remove the container."""
        if self._created:
            self._container.stop()

    def ctl(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` in the container and return what it printed."""
        code, output = self._container.exec(["rabbitmqctl", "--quiet", *arguments])
        if code != 0:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {output.decode()}")
        return str(output.decode())

    def _booted(self) -> bool:
        code, _ = self._container.exec(["rabbitmq-diagnostics", "check_port_connectivity"])
        return bool(code == 0)


@contextmanager
def rabbitmq_node(folder: Path) -> Iterator[Node]:
    """The session's broker, running; skips the test when there can be none."""
    given = os.environ.get("PARALLAX_TEST_AMQP_URL")
    if given:
        yield GivenNode(given)
        return
    installed = find_installed()
    if docker_answers():
        node: ContainerNode | NativeNode = ContainerNode()
    elif installed is not None:
        node = NativeNode(folder, installed)
    else:
        pytest.skip("no RabbitMQ: no PARALLAX_TEST_AMQP_URL, no Docker engine, no rabbitmq-server installed")
    try:
        node.start()
        yield node
    finally:
        node.dispose()


def docker_answers() -> bool:
    """Whether a Docker engine can be used."""
    docker = shutil.which("docker")
    if docker is None:
        return False
    asked = subprocess.run([docker, "version"], capture_output=True, check=False, timeout=60)
    return asked.returncode == 0


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until something listens."""

    def listening() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        return answers(port)

    wait_until(listening, f"port {port}")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll a condition that nothing announces."""
    until = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if time.monotonic() > until:
            raise RuntimeError(f"still waiting for {what} after {START_TIMEOUT_S:.0f} s")
        time.sleep(0.1)


async def delete_namespace(url: str, namespace: str) -> None:
    """Remove the queues and exchanges of a test's installation."""
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel()
        waiting = [queue for region in REGIONS for queue in region_queues(region, MODELS)]
        for queue in (*topology(REGIONS), *waiting):
            await channel.queue_delete(f"{namespace}.{queue.name}")
        for exchange in (namespace, f"{namespace}.dead"):
            await channel.exchange_delete(exchange)
    finally:
        await connection.close()
