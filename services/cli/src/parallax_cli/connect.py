"""Which installation a command talks to: a running one by its address, or the standalone home of this machine."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from parallax.catalog import Catalog, load_catalog
from parallax.client import ParallaxClient
from parallax.errors import InvalidInputError
from parallax_cli import examples
from parallax_cli.home import HOME_URL, Home, HomeBusyError, HomeLock, find_home
from parallax_cli.logs import log_nothing, log_to_file

BUSY_WAIT_S: Final = 10.0
"""How long a command that only reads waits for another one that holds the home and has no API to ask."""
MAX_BUDGET: Final = 2_000


class Need(Enum):
    """What a command needs of a standalone home."""

    READ = "read"
    CHANGE = "change"
    """The services but no executors: enough to cancel a job or to derive one from it."""
    RUN = "run"


@dataclass(frozen=True, slots=True)
class Target:
    """Where to go, from the command line and the environment."""

    url: str | None = None
    key: str | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @property
    def home(self) -> Home:
        """The standalone home."""
        return find_home(self.environment)

    def catalog(self) -> Catalog:
        """The catalog of the standalone home: ``PARALLAX_CATALOG``, or the packaged one with the local model."""
        given = self.environment.get("PARALLAX_CATALOG")
        return load_catalog(Path(given) if given else examples.local_catalog_path())


@asynccontextmanager
async def connected(target: Target, need: Need) -> AsyncIterator[ParallaxClient]:
    """A client of the installation; what had to be started for it ends with the block.

    Raises:
        HomeBusyError: The home is in use and the command needs it for itself.
        UnavailableError: Something could not be started.
    """
    async with AsyncExitStack() as stack:
        if target.url:
            log_nothing()
            client = ParallaxClient(target.url, key=target.key)
        else:
            client = ParallaxClient(HOME_URL, socket=await _home_socket(stack, target, need))
        yield await stack.enter_async_context(client)


async def _home_socket(stack: AsyncExitStack, target: Target, need: Need) -> Path:
    """The socket of the home's API: that of the process which holds the home, or of one started here."""
    home = target.home
    loop = asyncio.get_running_loop()
    deadline = loop.time() + BUSY_WAIT_S
    while True:
        try:
            lock = stack.enter_context(home.exclusive())
        except HomeBusyError as busy:
            if need is not Need.RUN and busy.api is not None and busy.api.exists():
                log_nothing()
                return busy.api
            if need is Need.RUN or loop.time() > deadline:
                raise
            await asyncio.sleep(0.1)
        else:
            log_to_file(home.log)
            return await _start(stack, target, lock, need)


async def _start(stack: AsyncExitStack, target: Target, lock: HomeLock, need: Need) -> Path:
    from parallax_cli import standalone  # noqa: PLC0415 - all services at once: only who needs them waits for them

    options = standalone.Options(
        catalog=target.catalog(), budget=_budget(target.environment), environment=target.environment
    )
    if need is Need.READ:
        return await stack.enter_async_context(standalone.reading(target.home, lock, options))
    return await stack.enter_async_context(standalone.running(target.home, lock, options, executors=need is Need.RUN))


def _budget(environment: Mapping[str, str]) -> int:
    text = environment.get("PARALLAX_CONCURRENCY") or "10"
    if not text.isdecimal() or not 1 <= int(text) <= MAX_BUDGET:
        raise InvalidInputError(f"PARALLAX_CONCURRENCY: {text!r} is not a whole number from 1 to {MAX_BUDGET}")
    return int(text)
