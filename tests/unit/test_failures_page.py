"""The page of failures names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    line.strip("| ").split(" | ")
    for line in (ROOT / "docs" / "failures.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith(("| seen", "| ---"))
]
FAILURES_SEEN = 12
"""Rows of the design's table; those of failures found since come after them."""


def test_every_failure_has_a_row() -> None:
    assert len(ROWS) >= FAILURES_SEEN


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:40] for row in ROWS])
def test_every_test_named_on_the_page_exists(row: list[str]) -> None:
    _seen, _must_hold, shown_by = row
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", shown_by)
    assert len(named) == len(shown_by.split("<br>"))
    for path, name in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), f"{path}::{name}"
