"""A RabbitMQ node of our own, made of local processes: its own name, ports, cookie and data folder."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from parallax.errors import UnavailableError
from parallax_cli.children import Children, free_port, wait_for_port

START_TIMEOUT_S: Final = 120.0
"""A node boots in 5 s on an idle machine."""
DEBIAN_SCRIPTS: Final = Path("/usr/lib/rabbitmq/bin")
"""Where Debian keeps the scripts that run as any user; the ones on the path insist on root or rabbitmq."""
_CONFIGURATION: Final = """
listeners.tcp.1 = 127.0.0.1:{port}
log.console = false
log.file.level = warning
disk_free_limit.absolute = 200MB
"""


def scripts_folder() -> Path | None:
    """The folder of ``rabbitmq-server`` and ``rabbitmqctl``, if they are installed."""
    if (DEBIAN_SCRIPTS / "rabbitmq-server").exists():
        return DEBIAN_SCRIPTS
    found = shutil.which("rabbitmq-server")
    return Path(found).resolve().parent if found else None


@asynccontextmanager
async def rabbitmq_node(folder: Path, children: Children) -> AsyncIterator[str]:
    """Run a node whose data lives in ``folder``.

    Yields:
        Its AMQP URL, on loopback.

    Raises:
        UnavailableError: RabbitMQ is not installed, or the node did not start.
    """
    scripts, epmd = scripts_folder(), _epmd()
    if scripts is None or epmd is None:
        raise UnavailableError(
            "rabbitmq-server is not installed (Debian: apt-get install rabbitmq-server; macOS: brew install rabbitmq); "
            "or set PARALLAX_AMQP_URL to use a broker that runs already"
        )
    port, mapper_port, dist_port = free_port(5672), free_port(), free_port()
    _configure(folder, port)
    environment = _environment(folder, mapper_port, dist_port)
    log = folder / "console.log"
    mapper = children.spawn([epmd, "-port", str(mapper_port), "-address", "127.0.0.1"], log=log)
    try:
        await wait_for_port(mapper_port, mapper, what="epmd", log=log, timeout_s=START_TIMEOUT_S)
        server = children.spawn([str(scripts / "rabbitmq-server")], environment=environment, cwd=folder, log=log)
        try:
            await wait_for_port(port, server, what="RabbitMQ", log=log, timeout_s=START_TIMEOUT_S)
            yield f"amqp://guest:guest@127.0.0.1:{port}/"
        finally:
            await _shut_down([str(scripts / "rabbitmqctl"), "--quiet", "shutdown"], environment, folder)
            children.kill(server)
    finally:
        children.kill(mapper)


def _configure(folder: Path, port: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rabbitmq.conf").write_text(_CONFIGURATION.format(port=port), encoding="utf-8")
    (folder / "enabled_plugins").write_text("[].\n", encoding="utf-8")


async def _shut_down(command: list[str], environment: Mapping[str, str], folder: Path) -> None:
    """Let the node write what it holds; whoever calls kills what is left."""
    process = await asyncio.create_subprocess_exec(
        *command, env=dict(environment), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(30):
            await process.wait()
    except TimeoutError:
        process.kill()


def _epmd() -> str | None:
    return shutil.which("epmd") or next(map(str, Path("/usr/lib/erlang").glob("erts-*/bin/epmd")), None)


def _environment(folder: Path, mapper_port: int, dist_port: int) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "HOME": str(folder),  # the Erlang cookie is made there
        "ERL_EPMD_PORT": str(mapper_port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_FLAGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_CONF_ENV_FILE": os.devnull,
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_DIST_PORT": str(dist_port),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_NODENAME": "parallax@localhost",
        "RABBITMQ_PID_FILE": str(folder / "node.pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none",
    }
