"""Server-sent events, as far as chat completions use them: the data of each event, and nothing else.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class EventParser:
    """Turns chunks of a stream, cut anywhere, into the data of its events."""

    _rest: bytes = b""
    _data: list[bytes] = field(default_factory=list)

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of every event that this chunk completes."""
        text = self._rest + chunk
        # A carriage return at the end may be the first half of a line end: it waits for the next chunk.
        held = b"\r" if text.endswith(b"\r") else b""
        lines = text[: len(text) - len(held)].splitlines(keepends=True)
        self._rest = held
        if lines and not lines[-1].endswith((b"\n", b"\r")):
            self._rest = lines.pop() + held
        for line in lines:
            content = line.rstrip(b"\r\n")
            if content.startswith(b"data:"):
                self._data.append(content[6:] if content[5:6] == b" " else content[5:])
            elif not content and self._data:
                yield b"\n".join(self._data)
                self._data.clear()

    def end(self) -> bytes | None:
        """Data of an event whose closing blank line never came: some servers leave out the last one."""
        rest = self._rest.rstrip(b"\r\n")
        if rest.startswith(b"data:"):
            self._data.append(rest[5:].removeprefix(b" "))
        data = b"\n".join(self._data)
        self._rest, self._data = b"", []
        return data or None
