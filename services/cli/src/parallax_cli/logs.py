"""Where a standalone process logs: a file in its home, since the terminal shows the job."""

import logging
from pathlib import Path
from typing import Final

from parallax.telemetry import configure_logging

MAX_LOG_BYTES: Final = 20 * 1024 * 1024
"""A log this large is set aside when the next process starts; one older log is kept."""


def log_to_file(path: Path) -> None:
    """Send every log line of the process to a file, as JSON."""
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    configure_logging("json")
    stream = path.open("a", encoding="utf-8")
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(stream)


def log_nothing() -> None:
    """Keep a client's log lines from the terminal; what matters is said by the command itself."""
    configure_logging("human", level="CRITICAL")
