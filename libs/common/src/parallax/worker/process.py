"""Runs heavy work on a document in a process of its own, so that the event loop of a service never stands still.

A process is started for each document and ends with it: nothing has to be recycled, its memory goes back to the system
as a whole, and whatever kills or stalls it was caused by this document. Starting one takes some 0.3 s, which is why
small documents are worked on in place; see ``docs/adr/0018``.
"""

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from parallax.errors import ParallaxError, UnavailableError
from parallax.telemetry import get_logger
from parallax.worker.frames import END, FAILURE, INPUT, MEMORY, PART, READY, Frame, read_frame, write_frame

log = get_logger(__name__)

LARGE_BYTES: Final = 64 * 1024
"""Documents above this size are worked on in a process of their own. The worst job below it, all of short questions,
takes 20 to 35 ms to check; a usual one takes 2."""


class WorkerFailedError(ParallaxError):
    """A worker could not finish a document; another one could not either. The message says which limit was reached."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one document may cost."""

    memory_bytes: int = 240 * 1024 * 1024
    """Of the worker; the largest legal job needs 160 MB, and 300 MB are what a document may take in all."""
    time_s: float = 120.0
    """From start to end; the largest legal job takes 2 s of an idle core, and an overloaded machine may be slow."""


class Worker:
    """Does one kind of work, one document at a time; others wait for their turn."""

    def __init__(self, target: str, *, limits: Limits | None = None) -> None:
        """``target`` is ``module:function``, see :class:`parallax.worker.__main__.Work`."""
        self._target = target
        self._limits = limits or Limits()
        self._turn = asyncio.Semaphore(1)

    async def run(self, argument: bytes, document: bytes) -> list[bytes]:
        """The parts that the function yields for a document.

        Raises:
            WorkerFailedError: The document takes too much time or memory, or makes the worker fail.
            UnavailableError: No worker can be started now.
        """
        async with self._turn:
            process = self._start()
            try:
                async with asyncio.timeout(self._limits.time_s):
                    received = await asyncio.to_thread(_converse, process, argument, document)
            except TimeoutError as error:
                raise WorkerFailedError(f"takes longer than {self._limits.time_s:g} s to check") from error
            finally:
                process.kill()  # nothing happens to one that has ended; otherwise its thread goes on and ends
        return self._parts(process.returncode, received)

    def _start(self) -> "subprocess.Popen[bytes]":
        """Start a process; takes 1 to 3 ms, and in a thread a cancellation would leave it to itself."""
        limits = self._limits
        try:
            return subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "parallax.worker",
                    self._target,
                    f"{limits.memory_bytes}",
                    f"{limits.time_s}",
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,  # Ctrl-C at the terminal is for the parent
            )
        except OSError as error:
            raise UnavailableError(f"no worker can be started: {error}") from error

    def _parts(self, code: int, received: list[Frame]) -> list[bytes]:
        kinds = {frame.kind for frame in received}
        if READY not in kinds:
            raise UnavailableError(f"a worker ended with {code} before its work began")
        if END in kinds:
            return [frame.data for frame in received if frame.kind == PART]
        traceback = next((frame.data.decode(errors="replace") for frame in received if frame.kind == FAILURE), None)
        log.error("worker_failed", target=self._target, code=code, traceback=traceback)
        if MEMORY in kinds:
            raise WorkerFailedError(f"takes more than {self._limits.memory_bytes // 2**20} MiB of memory to check")
        raise WorkerFailedError("cannot be checked: the process that checked it failed")


def _converse(process: "subprocess.Popen[bytes]", argument: bytes, document: bytes) -> list[Frame]:
    """All that the worker has to say, in a thread of its own, which ends with the worker."""
    received: list[Frame] = []
    with suppress(BrokenPipeError), process:  # closing what could not be written fails once more
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended, and what it said before tells why
            write_frame(process.stdin, INPUT, argument)
            write_frame(process.stdin, INPUT, document)
        with suppress(EOFError):
            while True:
                received.append(read_frame(process.stdout))
    return received
