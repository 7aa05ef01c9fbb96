"""What workers of tests do with documents."""

import os
import signal
import time
from collections.abc import Iterator


def echo(argument: bytes, document: bytes) -> Iterator[bytes]:
    """Hand both back, and print something meanwhile."""
    print("printed", flush=True)
    yield argument
    yield document


def stall(argument: bytes, document: bytes) -> Iterator[bytes]:
    """Say who is at work in a file, and never come back."""
    yield b"begun"
    with open(argument, "w", encoding="ascii") as file:  # noqa: PTH123 - a path in bytes
        file.write(str(os.getpid()))
    time.sleep(3_600)


def die(argument: bytes, document: bytes) -> Iterator[bytes]:
    """End as if the system had killed the process."""
    yield b"begun"
    os.kill(os.getpid(), signal.SIGKILL)


def devour(argument: bytes, document: bytes) -> Iterator[bytes]:
    """Ask for a GiB of memory, bit by bit."""
    kept = []
    for _ in range(1_024):
        kept.append(bytearray(2**20))
        yield b"x"


def fail(argument: bytes, document: bytes) -> Iterator[bytes]:
    """Meet a bug."""
    yield b"begun"
    raise ZeroDivisionError("on purpose")
