"""When what nobody lists is nowhere."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from results.witnesses import SILENT, Witness, decided_regions

NOW = datetime(2026, 11, 23, tzinfo=UTC)
ANSWERS = Witness(
    region="us",
    received_at=NOW - timedelta(seconds=1),
    steady_since=NOW - timedelta(hours=1),
    stopping=False,
    answer=frozenset({UUID(int=1)}),
)
MUTE = replace(ANSWERS, answer=None)
LOST = replace(MUTE, received_at=NOW - SILENT)
NEW = replace(ANSWERS, steady_since=NOW - timedelta(seconds=1))

CASES = {
    "everybody answers": ([ANSWERS, ANSWERS], True),
    "nobody is there": ([], False),
    "one does not answer": ([ANSWERS, MUTE], False),
    "one left a moment ago": ([ANSWERS, replace(MUTE, stopping=True)], False),
    "one answered before it left": ([ANSWERS, replace(ANSWERS, stopping=True)], True),
    "one left a while ago": ([NEW, replace(LOST, stopping=True)], True),
    "one is lost": ([ANSWERS, LOST], True),
    "one may be lost, or nobody was heard of": ([NEW, LOST], False),
    "all are lost": ([LOST, replace(LOST, answer=frozenset())], False),
    "a new one answers": ([NEW], True),
}


@pytest.mark.parametrize(("witnesses", "decided"), CASES.values(), ids=CASES.keys())
def test_a_region_is_decided_when_everybody_there_has_answered(witnesses: list[Witness], *, decided: bool) -> None:
    elsewhere = replace(ANSWERS, region="eu")
    assert decided_regions([*witnesses, elsewhere], NOW) == ({"us", "eu"} if decided else {"eu"})
