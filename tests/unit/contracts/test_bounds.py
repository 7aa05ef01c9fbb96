"""What a document holds is counted in its bytes, whatever stands in its texts."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.contracts import bounds
from parallax.contracts.bounds import Size, excess, measure
from parallax.contracts.job import MAX_DEPTH, MAX_JOB_BYTES, MAX_KEYS, MAX_VALUES

TEXT = st.text(alphabet=st.sampled_from('a"\\,:[]{}\n\u00e9\U0001f600')) | st.text()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def counted(document: Any, level: int = 0) -> Iterator[Size]:
    """The size of each value, as a parser would find them; an empty list or object counts as if it held something."""
    match document:
        case list():
            yield Size(1 if document else 2, 0, level + 1)
            for item in document:
                yield from counted(item, level + 1)
        case dict():
            yield Size(1 if document else 2, len(document), level + 1)
            for item in document.values():
                yield from counted(item, level + 1)
        case _:
            yield Size(1, 0, level)


@given(JSON, st.booleans(), st.sampled_from([None, 2]))
def test_values_keys_and_levels_are_those_of_a_parser(document: Any, ensure_ascii: bool, indent: int | None) -> None:
    sizes = list(counted(document))
    expected = Size(sum(s.values for s in sizes), sum(s.keys for s in sizes), max(s.depth for s in sizes))
    assert measure(json.dumps(document, ensure_ascii=ensure_ascii, indent=indent).encode()) == expected


@given(JSON)
def test_windows_make_no_difference(document: Any) -> None:
    body = json.dumps(document).encode()
    whole = measure(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "WINDOW_BYTES", 3)
        assert measure(body) == whole


@given(st.binary())
def test_any_bytes_are_counted(body: bytes) -> None:
    measure(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"x" * (MAX_JOB_BYTES + 1), f"is {MAX_JOB_BYTES + 1} bytes long"),
        (b'{"questions":[' + b"[]," * 5_000_000 + b"[]]}", f"holds more than {MAX_VALUES} values"),
        (b'{"metadata":{"a":[' + b"1," * 7_700_000 + b"1]}}", f"holds more than {MAX_VALUES} values"),
        (b"{" + b'"a":1,' * MAX_KEYS + b'"b":1}', f"holds more than {MAX_KEYS} keys"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "is nested too deeply"),
        (b"[" * 10_000_000, f"holds more than {MAX_VALUES} values"),
        (b'{"a":' * (MAX_DEPTH + 1), "is nested too deeply"),
    ],
)
def test_each_bound_is_reported(body: bytes, message: str) -> None:
    problem = excess(body)
    assert problem is not None
    assert (problem.pointer, problem.message) == ("", message)


@pytest.mark.parametrize(
    "body",
    [
        b'"' + b"[,:{" * 3_000_000 + b'"',
        b'"' + b'\\"[' * 5_000_000 + b'"',
        b'"' + b"\\\\" * 7_000_000 + b'"',
        b"[" + b"1," * (MAX_VALUES - 3) + b"1]",
        b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH,
    ],
)
def test_what_stands_in_a_text_or_keeps_the_bounds_is_let_through(body: bytes) -> None:
    assert excess(body) is None
