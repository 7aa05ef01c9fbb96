"""The worker: ``python -m parallax.worker MODULE:FUNCTION MEMORY_BYTES SECONDS``.

Reads an argument and a document from standard input, calls ``FUNCTION(argument, document)`` and writes each part that
it yields to standard output. Ends by itself when its time is over, also without the process that started it.
"""

import faulthandler
import gc
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import BinaryIO, Final, Protocol, cast

from parallax.worker.frames import END, FAILURE, MEMORY, PART, READY, read_frame, write_frame

NICENESS: Final = 5
"""The services that share the machine have work that somebody waits for."""
PATIENCE_S: Final = 5.0
"""How long the parent has to end the worker before the worker ends itself."""


class Work(Protocol):
    """What a worker does with a document."""

    def __call__(self, argument: bytes, document: bytes) -> Iterator[bytes]:
        """The parts of the outcome."""
        ...


def main(target: str, memory_bytes: int, seconds: float) -> None:
    """Do the work of one document."""
    faulthandler.dump_traceback_later(seconds + PATIENCE_S, exit=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides when to stop, and ends the worker itself
        signal.signal(number, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    gc.disable()  # one document, and then the end: there is nothing worth collecting
    output = _own_output()
    module, name = target.split(":")
    work = cast("Work", getattr(importlib.import_module(module), name))
    argument, document = read_frame(sys.stdin.buffer).data, [read_frame(sys.stdin.buffer).data]
    _limit_memory(memory_bytes)
    write_frame(output, READY)
    try:
        for part in work(argument, document.pop()):
            write_frame(output, PART, part)
        write_frame(output, END)
    except MemoryError:
        write_frame(output, MEMORY)
    except Exception:  # noqa: BLE001 - the parent logs it
        write_frame(output, FAILURE, traceback.format_exc(limit=-8).encode(errors="replace"))


def _own_output() -> BinaryIO:
    """Standard output, kept for frames: whatever is printed goes to standard error."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return output


def _limit_memory(memory_bytes: int) -> None:
    """Refuse memory beyond the limit, where the system can: Linux counts all private writable memory as data."""
    try:
        import resource  # noqa: PLC0415 - Windows has none
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
    except (BrokenPipeError, EOFError):
        os._exit(1)  # nobody waits for the outcome
