"""A RabbitMQ node for the test session, that tests may also stop, kill and cut.

Where it comes from: ``PARALLAX_TEST_AMQP_URL`` if set, else a container if a Docker engine answers, else a native
node of our own (its own name, ports, port mapper, cookie and data folder; the system's node is never touched).
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import aiormq
import pytest

from parallax.contracts.routing import topology

REGIONS = ("us", "eu", "apac")
"""The regions tests use on a real broker; ``delete_namespace`` knows their queues."""
START_TIMEOUT_S = 120.0
"""A node boots in 5 s on an idle machine; tests share theirs."""
DEBIAN_SCRIPTS = Path("/usr/lib/rabbitmq/bin")
"""Where Debian keeps the scripts that run as any user; the ones on the path insist on root or rabbitmq."""
CONFIGURATION = """
listeners.tcp.1 = 127.0.0.1:{port}
log.console = false
log.file.level = warning
vm_memory_high_watermark.absolute = 2GB
disk_free_limit.absolute = 50MB
"""


WATCHDOG = """
import os, signal, sys
groups = [int(line) for line in sys.stdin]
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""
"""Learns process groups on its input and kills them when that ends: nothing outlives a test run that was killed."""


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

    def __init__(self, folder: Path, scripts: Path) -> None:
        self._folder = folder
        self._scripts = scripts
        self._port, self._epmd_port, self._dist_port = free_ports(3)
        self._name = f"parallax-test-{uuid4().hex[:8]}@localhost"
        self.url = f"amqp://guest:guest@127.0.0.1:{self._port}/"
        self._watchdog: subprocess.Popen[str] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rabbitmq.conf").write_text(CONFIGURATION.format(port=self._port))
        (folder / "enabled_plugins").write_text("[].\n")

    def start(self) -> None:
        """Start the node on the data it has; return when clients can connect."""
        if self._epmd is None:
            command = [epmd_path(), "-port", str(self._epmd_port), "-address", "127.0.0.1"]
            null = subprocess.DEVNULL
            self._epmd = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)
            self._watch(self._epmd)
            wait_for_port(self._epmd_port, self._epmd)
        with (self._folder / "console.log").open("ab") as console:
            self._server = subprocess.Popen(
                [str(self._scripts / "rabbitmq-server")],
                env=self._environment(),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        self._watch(self._server)
        wait_for_port(self._port, self._server)

    def stop(self) -> None:
        """Stop the node in good order."""
        self.ctl("shutdown")
        self._reap()

    def kill(self) -> None:
        """Stop the node as a power cut would."""
        self._reap()

    def wipe(self) -> None:
        """Lose the disk of a stopped node."""
        assert self._server is None, "stop the node first"
        shutil.rmtree(self._folder / "mnesia")

    def dispose(self) -> None:
        """End every process of the node."""
        self._reap()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None
        if self._watchdog is not None:
            self._watchdog.kill()
            self._watchdog.communicate()
            self._watchdog = None

    def ctl(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` on the node and return what it printed."""
        command = [str(self._scripts / "rabbitmqctl"), "-n", self._name, "--quiet", *arguments]
        done = subprocess.run(
            command, env=self._environment(), cwd=self._folder, capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode != 0:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {done.stderr or done.stdout}")
        return done.stdout

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        if self._watchdog is None:
            self._watchdog = subprocess.Popen(
                [sys.executable, "-c", WATCHDOG], stdin=subprocess.PIPE, text=True, start_new_session=True
            )
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.write(f"{process.pid}\n")
        self._watchdog.stdin.flush()

    def _reap(self) -> None:
        if self._server is None:
            return
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()
        self._server = None
        wait_until(lambda: not answers(self._port), "the end of the node")

    def _environment(self) -> Mapping[str, str]:
        folder = self._folder
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(folder),  # the Erlang cookie is made there
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_FLAGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_PID_FILE": str(folder / "node.pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none",
        }


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
    scripts = native_scripts()
    if docker_answers():
        node: ContainerNode | NativeNode = ContainerNode()
    elif scripts is not None:
        node = NativeNode(folder, scripts)
    else:
        pytest.skip("no RabbitMQ: no PARALLAX_TEST_AMQP_URL, no Docker engine, no rabbitmq-server installed")
    try:
        node.start()
        yield node
    finally:
        node.dispose()


def native_scripts() -> Path | None:
    """The folder of ``rabbitmq-server`` and ``rabbitmqctl``, if they are installed."""
    if (DEBIAN_SCRIPTS / "rabbitmq-server").exists():
        return DEBIAN_SCRIPTS
    found = shutil.which("rabbitmq-server")
    return Path(found).resolve().parent if found else None


def epmd_path() -> str:
    """Erlang's port mapper."""
    found = shutil.which("epmd") or next(map(str, Path("/usr/lib/erlang").glob("erts-*/bin/epmd")), None)
    assert found is not None, "rabbitmq-server is installed without Erlang's epmd"
    return found


def docker_answers() -> bool:
    """Whether a Docker engine can be used."""
    docker = shutil.which("docker")
    if docker is None:
        return False
    asked = subprocess.run([docker, "version"], capture_output=True, check=False, timeout=60)
    return asked.returncode == 0


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until something listens."""

    def listening() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        return answers(port)

    wait_until(listening, f"port {port}")


def answers(port: int) -> bool:
    """Whether something listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


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
        for queue in topology(REGIONS):
            await channel.queue_delete(f"{namespace}.{queue.name}")
        for exchange in (namespace, f"{namespace}.dead"):
            await channel.exchange_delete(exchange)
    finally:
        await connection.close()
