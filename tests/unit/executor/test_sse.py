"""Reading server-sent events from chunks cut anywhere."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from executor.endpoints.sse import EventParser

STREAM = (
    b': comment\r\ndata: {"a": 1}\r\n\r\nevent: x\ndata:two\ndata: lines\n\nid: 7\n\ndata: last\r\rdata: [DONE]\n\n'
)
EVENTS = [b'{"a": 1}', b"two\nlines", b"last", b"[DONE]"]


def parsed(chunks: list[bytes]) -> list[bytes]:
    parser = EventParser()
    return [data for chunk in chunks for data in parser.feed(chunk)]


def test_events_of_one_chunk() -> None:
    assert parsed([STREAM]) == EVENTS


def test_events_byte_by_byte() -> None:
    assert parsed([bytes([byte]) for byte in STREAM]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=10))
def test_wherever_the_stream_is_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    assert parsed([STREAM[a:b] for a, b in pairwise(edges)]) == EVENTS


@given(st.binary(max_size=200))
def test_any_bytes_are_survived(noise: bytes) -> None:
    parsed([noise])


def test_the_last_event_may_lack_its_blank_line() -> None:
    parser = EventParser()
    assert list(parser.feed(b"data: one\n\ndata: two")) == [b"one"]
    assert parser.end() == b"two"
    assert parser.end() is None
