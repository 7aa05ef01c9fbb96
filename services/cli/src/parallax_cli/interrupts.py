"""Ctrl-C while a job is watched: the first asks, the second leaves at once."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from parallax_cli.exits import ExitCode


@dataclass(slots=True)
class Interrupts:
    """What the user (or the system) asked for so far."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the first Ctrl-C."""
    terminated: bool = False
    """Set by SIGTERM: leave in order, without touching the job."""


@contextmanager
def interrupts(leaving: Callable[[], None]) -> Iterator[Interrupts]:
    """Take SIGINT and SIGTERM for the length of the block.

    The second SIGINT calls ``leaving`` and ends the process without unwinding: nothing is waited for.
    """
    loop = asyncio.get_running_loop()
    seen = Interrupts()

    def on_interrupt() -> None:
        if seen.asked.is_set():
            leaving()
            if sys.stderr.isatty() or sys.stdout.isatty():
                os.write(2, b"\x1b[?25h\n")  # the live view had hidden the cursor
            os._exit(ExitCode.INTERRUPTED)
        seen.asked.set()

    def on_terminate() -> None:
        seen.terminated = True
        seen.asked.set()

    loop.add_signal_handler(signal.SIGINT, on_interrupt)
    loop.add_signal_handler(signal.SIGTERM, on_terminate)
    try:
        yield seen
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)
