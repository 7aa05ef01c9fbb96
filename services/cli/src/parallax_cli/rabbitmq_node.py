"""A RabbitMQ node of our own, made of local processes: its own name, ports, cookie and data folder."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from parallax.errors import UnavailableError
from parallax_cli.children import Children, free_ports, wait_for_port

START_TIMEOUT_S: Final = 120.0
"""A node boots in 5 s on an idle machine."""
DEBIAN_SCRIPTS: Final = Path("/usr/lib/rabbitmq/bin")
"""Where Debian keeps the scripts that run as any user; the ones on the path insist on root or rabbitmq."""
_CONFIGURATION: Final = """
listeners.tcp.1 = 127.0.0.1:{port}
log.console = false
log.file.level = warning
raft.wal_max_size_bytes = 64000000
{limits}
"""


@dataclass(frozen=True, slots=True)
class Installed:
    """The programs a node is made of, where they are installed."""

    scripts: Path
    """The folder of ``rabbitmq-server`` and ``rabbitmqctl``."""
    epmd: str
    """Erlang's port mapper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalNode:
    """A node: who it is, where its data lives, and the commands that run it and talk to it."""

    installed: Installed
    folder: Path
    name: str
    port: int
    mapper_port: int
    dist_port: int
    limits: str = "disk_free_limit.absolute = 200MB"
    """Lines of its configuration."""
    erlang: str = "+sbwt none"
    """Arguments of its virtual machine; this one leaves idle cores to others."""

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def data(self) -> Path:
        """What the node keeps."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """What its programs print."""
        return self.folder / "console.log"

    def configure(self) -> None:
        """Write its configuration."""
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = _CONFIGURATION.format(port=self.port, limits=self.limits)
        (self.folder / "rabbitmq.conf").write_text(configuration, encoding="utf-8")
        (self.folder / "enabled_plugins").write_text("[].\n", encoding="utf-8")

    def start_mapper(self, children: Children) -> "subprocess.Popen[bytes]":
        """Start its port mapper, which must listen before the node starts."""
        command = [self.installed.epmd, "-port", str(self.mapper_port), "-address", "127.0.0.1"]
        return children.spawn(command, log=self.log)

    def start_server(self, children: Children) -> "subprocess.Popen[bytes]":
        """Start the node on the data it has."""
        command = [str(self.installed.scripts / "rabbitmq-server")]
        return children.spawn(command, environment=self.environment(), cwd=self.folder, log=self.log)

    def control(self, *arguments: str) -> list[str]:
        """The command line of ``rabbitmqctl``; to be run with the node's environment in its folder."""
        return [str(self.installed.scripts / "rabbitmqctl"), "-n", self.name, "--quiet", *arguments]

    def environment(self) -> dict[str, str]:
        """What its programs find in their environment, and nothing else."""
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.folder),  # the Erlang cookie is made there
            "ERL_EPMD_PORT": str(self.mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_FLAGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_DIST_PORT": str(self.dist_port),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_MNESIA_BASE": str(self.data),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_PID_FILE": str(self.folder / "node.pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": self.erlang,
        }


def find_installed() -> Installed | None:
    """RabbitMQ, if it is installed on this machine with everything that a node needs."""
    scripts: Path | None = DEBIAN_SCRIPTS
    if not (DEBIAN_SCRIPTS / "rabbitmq-server").exists():
        found = shutil.which("rabbitmq-server")
        scripts = Path(found).resolve().parent if found else None
    epmd = shutil.which("epmd") or next(map(str, Path("/usr/lib/erlang").glob("erts-*/bin/epmd")), None)
    return Installed(scripts, epmd) if scripts is not None and epmd is not None else None


@asynccontextmanager
async def rabbitmq_node(folder: Path, children: Children) -> AsyncIterator[str]:
    """Run a node whose data lives in ``folder``.

    Yields:
        Its AMQP URL, on loopback.

    Raises:
        UnavailableError: RabbitMQ is not installed, or the node did not start.
    """
    installed = find_installed()
    if installed is None:
        raise UnavailableError(
            "rabbitmq-server is not installed (Debian: apt-get install rabbitmq-server; macOS: brew install rabbitmq); "
            "or set PARALLAX_AMQP_URL to use a broker that runs already"
        )
    port, mapper_port, dist_port = free_ports(3, preferred=5672)
    node = LocalNode(
        installed=installed, folder=folder, name="parallax@localhost", port=port, mapper_port=mapper_port,
        dist_port=dist_port,
    )  # fmt: skip
    node.configure()
    mapper = node.start_mapper(children)
    try:
        await wait_for_port(mapper_port, mapper, what="epmd", log=node.log, timeout_s=START_TIMEOUT_S)
        server = node.start_server(children)
        try:
            await wait_for_port(port, server, what="RabbitMQ", log=node.log, timeout_s=START_TIMEOUT_S)
            yield node.url
        finally:
            await _shut_down(node)
            children.kill(server)
    finally:
        children.kill(mapper)


async def _shut_down(node: LocalNode) -> None:
    """Let the node write what it holds; whoever calls kills what is left."""
    null = subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *node.control("shutdown"), env=node.environment(), cwd=node.folder, stdout=null, stderr=null
    )
    try:
        async with asyncio.timeout(30):
            await process.wait()
    except TimeoutError:
        process.kill()
