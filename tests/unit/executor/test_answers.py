"""Putting answers together from hostile parts."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.endpoints.answers import (
    MAX_TEXT_CHARS,
    AnswerParts,
    MalformedError,
    StreamedError,
    error_message,
)
from parallax.contracts.outcomes import Usage

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def chunk(content: object = None, finish: str | None = None, **more: object) -> bytes:
    return json.dumps({"choices": [{"delta": {"content": content}, "finish_reason": finish}], **more}).encode()


def test_parts_become_one_answer() -> None:
    parts = AnswerParts()
    parts.add(chunk("Hello", id="c1", model="m-1", system_fingerprint="fp"))
    parts.add(chunk(", world", finish="stop"))
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    parts.add(json.dumps({"choices": [], "usage": usage, "timings": {"predicted_ms": 12.5}}).encode())
    parts.add(b"[DONE]")
    answer = parts.answer()
    assert (answer.text, answer.finish_reason, answer.model_reported) == ("Hello, world", "stop", "m-1")
    assert answer.usage == Usage(prompt_tokens=3, completion_tokens=2)
    assert answer.provider_timings == {"predicted_ms": 12.5}
    assert answer.versions == {"system_fingerprint": "fp"}
    assert parts.call_id == "c1"


def test_a_stream_without_its_end_is_no_answer() -> None:
    parts = AnswerParts()
    parts.add(chunk("Hello"))
    with pytest.raises(MalformedError, match="before the answer was complete"):
        parts.answer()


def test_a_finish_reason_is_an_end() -> None:
    parts = AnswerParts()
    parts.add(chunk("", finish="stop"))
    assert parts.answer().text == ""


@pytest.mark.parametrize(
    "data",
    [b"{", b"[]", b"\xff", b"[" * 100_000, chunk(17), b'{"choices": {}}', b'{"choices": [{"delta": 3}]}'],
    ids=["cut", "list", "not UTF-8", "deep", "number", "object", "delta"],
)
def test_what_is_no_chunk_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        AnswerParts().add(data)


def test_an_endless_answer_is_refused() -> None:
    parts = AnswerParts()
    parts.add(chunk("x" * MAX_TEXT_CHARS))
    with pytest.raises(MalformedError, match="longer than"):
        parts.add(chunk("x"))


@pytest.mark.parametrize("usage", [{}, [], "x", {"prompt_tokens": -1}, {"prompt_tokens": True}, {"prompt_tokens": 1e9}])
def test_an_answer_is_not_lost_over_its_bill(usage: object) -> None:
    parts = AnswerParts()
    parts.add(chunk("ok", finish="stop", usage=usage))
    assert parts.answer().usage is None


def test_an_error_inside_a_stream_is_an_error() -> None:
    with pytest.raises(StreamedError, match="out of memory") as caught:
        AnswerParts().add(b'{"error": {"message": "out of memory", "code": 503}}')
    assert caught.value.status == 503


@given(JSON)
def test_any_json_is_understood_or_refused(document: object) -> None:
    for wrapped in (document, {"choices": document}, {"choices": [document]}, {"choices": [{"delta": document}]}):
        with contextlib.suppress(MalformedError, StreamedError):
            AnswerParts().add(json.dumps(wrapped).encode())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "no such model"}}', "no such model"),
        (b'{"error": "no such model"}', "no such model"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b"  upstream connect error ", "upstream connect error"),
        (b'{"object": "error", "message": "bad"}', "bad"),
        (b"", ""),
        (b"\xff", "\ufffd"),
    ],
)
def test_errors_say_what_their_server_said(body: bytes, message: str) -> None:
    assert error_message(body) == message
