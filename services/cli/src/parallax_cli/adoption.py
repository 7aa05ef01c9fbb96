"""What a killed process left behind in the embedded PostgreSQL's folder, put in order before the server is used.

Only who holds the home's lock may do this: it knows that no other process of ours is alive.
"""

import os
import signal
import time
from pathlib import Path
from typing import Final

import psutil

SHUTDOWN_S: Final = 15.0
"""A server that was told to stop writes a checkpoint first."""
_USERS: Final = ".handle_pids.json"
"""Where the server's package counts the processes that use it; it stops the server with the last of them."""
_LOCK: Final = "postmaster.pid"


def adopt(folder: Path) -> None:
    """Make the folder ready for the next start.

    Killed processes are struck off the list of users, else the server would never be stopped again. A server that
    is going down is waited for. A lock file whose process id now belongs to some other program is removed: after
    the restart of a container that is likely.
    """
    if (folder / _USERS).exists():
        (folder / _USERS).write_text("[]", encoding="utf-8")
    deadline = time.monotonic() + SHUTDOWN_S
    while (pid := _server(folder)) is not None:
        if not _is_postgres(pid):
            (folder / _LOCK).unlink(missing_ok=True)
        elif _status(folder) == "ready" or time.monotonic() > deadline:
            return
        else:
            time.sleep(0.05)


def stop_soon(folder: Path) -> None:
    """Tell the server to shut down by itself, for a process that cannot wait for it."""
    pid = _server(folder)
    if pid is not None and _is_postgres(pid):
        os.kill(pid, signal.SIGINT)  # PostgreSQL's fast shutdown


def _lines(folder: Path) -> list[str]:
    try:
        return (folder / _LOCK).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _server(folder: Path) -> int | None:
    lines = _lines(folder)
    return int(lines[0]) if lines and lines[0].strip().isdecimal() else None


def _status(folder: Path) -> str:
    lines = _lines(folder)
    return lines[7].strip() if len(lines) > 7 else "starting"


def _is_postgres(pid: int) -> bool:
    try:
        return "postgres" in psutil.Process(pid).name()
    except psutil.Error:
        return False
