"""What passes between a process and its worker: frames of a kind, a length and bytes.

The worker reads two frames, its argument and the document, says that it is ready, and answers with any number of parts
and one last frame. Neither side writes while the other one does.
"""

import struct
from typing import IO, Final, NamedTuple

INPUT: Final = b"I"
READY: Final = b"R"
"""The worker has its input: whatever happens from here on is caused by the document."""
PART: Final = b"P"
END: Final = b"E"
MEMORY: Final = b"M"
"""The memory limit was reached; nothing follows."""
FAILURE: Final = b"F"
"""The work raised; the bytes are the traceback, and nothing follows."""

_HEADER: Final = struct.Struct("!cQ")


class Frame(NamedTuple):
    """One frame."""

    kind: bytes
    data: bytes


def write_frame(stream: IO[bytes], kind: bytes, data: bytes = b"") -> None:
    """Write a frame, and have it sent."""
    stream.write(_HEADER.pack(kind, len(data)))
    stream.write(data)
    stream.flush()


def read_frame(stream: IO[bytes]) -> Frame:
    """The next frame of a stream.

    Raises:
        EOFError: The stream ends before the frame does.
    """
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise EOFError
    kind, length = _HEADER.unpack(header)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return Frame(kind, data)
