"""The home folder of a standalone installation: its database, and the lock that keeps a second process out."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

from parallax.errors import InvalidInputError, UnavailableError

HOME_URL: Final = "http://parallax"
"""The name in requests that go through a home's socket."""


class HomeBusyError(UnavailableError):
    """Another process works with this home; ``api`` is the socket where it answers, if it does."""

    def __init__(self, home: Path, pid: int | None, api: Path | None) -> None:
        who = f"process {pid}" if pid else "another process"
        super().__init__(
            f"{home} is in use by {who}: wait for it to end, watch its jobs with `parallax jobs` and "
            "`parallax watch JOB`, or choose another folder with PARALLAX_HOME"
        )
        self.api = api


@dataclass(frozen=True, slots=True)
class Home:
    """Where a standalone installation keeps everything."""

    root: Path

    @property
    def postgres(self) -> Path:
        """The data folder of the embedded PostgreSQL."""
        return self.root / "postgres"

    @property
    def lock(self) -> Path:
        """The lock file; its text says who holds it."""
        return self.root / "lock"

    @property
    def log(self) -> Path:
        """Where the services of a standalone process log."""
        return self.root / "parallax.log"

    @contextmanager
    def exclusive(self) -> Iterator["HomeLock"]:
        """Keep every other process out for the length of the block. The system frees the lock of a killed process.

        Raises:
            HomeBusyError: Somebody else holds it.
            InvalidInputError: The folder cannot be made or written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InvalidInputError(f"PARALLAX_HOME {self.root}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._busy() from None
            lock = HomeLock(descriptor)
            lock.announce(api=None)
            yield lock
            lock.clear()
        finally:
            os.close(descriptor)

    def _busy(self) -> HomeBusyError:
        try:
            holder = json.loads(self.lock.read_text(encoding="utf-8"))
            api = holder.get("api")
            return HomeBusyError(self.root, int(holder["pid"]), Path(api) if api else None)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return HomeBusyError(self.root, None, None)


@dataclass(frozen=True, slots=True)
class HomeLock:
    """The lock while it is held."""

    descriptor: int

    def announce(self, *, api: Path | None) -> None:
        """Tell others who holds the home and on which socket its API answers."""
        text = json.dumps({"pid": os.getpid(), "api": str(api) if api else None}).encode()
        self.clear()
        os.pwrite(self.descriptor, text, 0)

    def clear(self) -> None:
        """Say nothing any more."""
        os.ftruncate(self.descriptor, 0)


def find_home(environment: Mapping[str, str]) -> Home:
    """``PARALLAX_HOME``, or the platform's folder for user data."""
    given = environment.get("PARALLAX_HOME", "")
    return Home(Path(given).expanduser().resolve() if given else platformdirs.user_data_path("parallax"))
