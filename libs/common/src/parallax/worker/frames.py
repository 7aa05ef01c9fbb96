"""What passes between a process and its worker: frames of a kind, a length and bytes."""

import struct
from collections.abc import Iterator
from typing import BinaryIO, Final

READY: Final = b"R"
"""The worker has its input: whatever happens from here on is caused by the document."""
PART: Final = b"P"
END: Final = b"E"
MEMORY: Final = b"M"
"""The memory limit was reached."""
FAILURE: Final = b"F"
"""The work raised; the bytes are the traceback."""

_HEADER: Final = struct.Struct("!cQ")


def frame(kind: bytes, data: bytes = b"") -> bytes:
    """A frame, encoded."""
    return _HEADER.pack(kind, len(data)) + data


def read_frame(stream: BinaryIO) -> bytes:
    """The bytes of the next frame of a stream.

    Raises:
        EOFError: The stream ends before the frame does.
    """
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise EOFError
    _, length = _HEADER.unpack(header)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


def frames(received: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The kind and the bytes of each whole frame of what was received."""
    start = 0
    while start + _HEADER.size <= len(received):
        kind, length = _HEADER.unpack_from(received, start)
        end = start + _HEADER.size + length
        if end > len(received):
            return
        yield kind, received[start + _HEADER.size : end]
        start = end
