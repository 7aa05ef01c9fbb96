"""The small pure parts of the API: cursors, media types, cells of CSV, estimates of cost, event numbers."""

import csv
import io
from datetime import UTC, datetime
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.catalog import parse_catalog
from parallax.contracts.answers import Cost
from parallax.pricing import Use
from results.api import cursors
from results.api.exports import cell
from results.api.negotiation import accepts
from results.api.problems import ApiError, Kind
from results.api.queries.summaries import estimate
from results.api.streams import event_number


class Place(NamedTuple):
    """A key as listings have them."""

    at: datetime
    name: str
    number: int


NAMES = st.from_regex(r"[A-Za-z0-9._-]{1,128}", fullmatch=True)


@given(at=st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC)), name=NAMES, index=st.integers(0, 2**31 - 1))  # fmt: skip # noqa: DTZ001, E501
def test_a_cursor_keeps_its_place(at: datetime, name: str, index: int) -> None:
    place = Place(at, name, index)
    assert cursors.decode(cursors.encode(place, {"a": 1}), {"a": 1}, Place) == place
    with pytest.raises(ApiError):
        cursors.decode(cursors.encode(place, {"a": 1}), {"a": 2}, Place)


@given(st.text() | st.binary().map(lambda b: b.hex()))
def test_any_other_text_is_no_cursor(text: str) -> None:
    with pytest.raises(ApiError) as caught:
        cursors.decode(text, {}, Place)
    assert caught.value.kind is Kind.INVALID_CURSOR


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("*/*", True),
        ("application/*", True),
        ("text/html, application/json;q=0.1", True),
        ("APPLICATION/JSON", True),
        ("text/html", False),
        ("application/json;q=0", False),
        ("*/*, application/json;q=0.0", False),
        ("*/*;q=0, application/*", True),
        ("application/json;q=x", False),
    ],
)
def test_the_most_specific_range_decides(header: str, accepted: bool) -> None:
    assert accepts(header, "application/json") is accepted


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", " =1", "\n=1", "  -2+3"])
def test_formulas_are_defused(text: str) -> None:
    assert cell(text) == "'" + text


@given(st.text())
def test_no_text_leaves_its_cell(text: str) -> None:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["before", cell(text), "after"]])
    ((before, found, after),) = csv.reader(io.StringIO(buffer.getvalue(), newline=""))
    assert (before, after) == ("before", "after")
    assert found in {text, f"'{text}"}
    assert not found.lstrip(" \n").startswith(("=", "+", "-", "@", "\t", "\r"))


def test_an_estimate_is_rounded_and_says_what_it_leaves_out() -> None:
    document = {
        "regions": {"eu": {"name": "Europe", "endpoint": "modal://a/B", "price_multiplier": 1.5}},
        "models": {
            "priced": {"upstream": "x", "regions": ["eu"], "modal": {"gpu": "L4", "max_inputs": 3}},
            "other": {"upstream": "y", "regions": ["eu"]},
        },
        "prices": {"as_of": "2026-11-01", "gpu_second": {"L4": 0.002}},
    }
    catalog = parse_catalog(document, source="test")
    cost = estimate(catalog, [Use("priced", "eu", 1.0), Use("priced", "eu", 1.0 / 3), Use("other", "eu", 5.0)])
    assert cost == Cost(amount=0.001333, currency="USD", prices_as_of="2026-11-01", complete=False)
    assert estimate(catalog, [Use("other", "eu", 5.0)]) is None


@pytest.mark.parametrize(("header", "number"), [(None, 0), ("", 0), ("7", 7), ("0", 0)])
def test_a_stream_is_taken_up_where_it_was_left(header: str | None, number: int) -> None:
    assert event_number(header) == number


@pytest.mark.parametrize("header", ["x", "-1", "1.5", "9" * 20, "٣", " 1"])
def test_no_other_text_is_an_event(header: str) -> None:
    with pytest.raises(ApiError):
        event_number(header)
