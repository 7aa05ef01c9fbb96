"""What a fact must be before the ledger sees it, and which of several wins."""

import json
from typing import Any
from uuid import UUID

import pytest

from parallax.contracts.messages import encode
from parallax.contracts.outcomes import ExecutionStatus
from parallax.errors import PoisonError
from results.facts import BatchKey, BatchSize, Fact, Opening, first_facts, read_news
from tests.fakes import facts

BATCH = facts.plan(models=1)
CELL = BATCH.cells[0]
FACT = facts.observed(BATCH, CELL)


def changed(**fields: Any) -> bytes:
    """The fact's message with some fields replaced."""
    return json.dumps(json.loads(encode(FACT)) | fields).encode()


def test_a_fact_is_read_with_the_names_it_is_counted_by() -> None:
    fact = read_news(encode(FACT))

    size = BatchSize(BatchKey("job-1", "all", 0), "question-0", expected=3, planned=False)
    assert fact[:3] == (FACT.execution_id, size, True)
    assert json.loads(fact.document)["output"] == {"text": "an answer", "refusal": None}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"kind": "execution_finished"}'])
def test_what_is_no_fact_is_poison(body: bytes) -> None:
    with pytest.raises(PoisonError, match="is no fact"):
        read_news(body)


@pytest.mark.parametrize(
    "fields",
    [
        {"execution_id": str(UUID(int=7))},
        {"region": "eu"},
        {"sample": 1},
        {"model_id": "model-9"},
        {"question_id": "question-9"},
        {"batch": {"job_id": "job-2", "lane": "all", "question_index": 0}},
    ],
)
def test_an_id_that_is_not_that_of_its_coordinates_is_poison(fields: dict[str, Any]) -> None:
    with pytest.raises(PoisonError, match="is not that of"):
        read_news(changed(**fields))


def test_a_fact_from_another_region_than_its_lane_is_poison() -> None:
    with pytest.raises(PoisonError, match="in no lane 'eu'"):
        read_news(changed(batch={"job_id": "job-1", "lane": "eu", "question_index": 0}))


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_moment_that_could_not_be_read_again_is_poison(moment: str) -> None:
    with pytest.raises(PoisonError, match="no moment"):
        read_news(changed(completed_at=moment))


@pytest.mark.parametrize("text", ["\0", "a\0b", "\\\0", "\\\\\0"])
def test_a_nul_is_poison(text: str) -> None:
    with pytest.raises(PoisonError, match="NUL"):
        read_news(changed(output={"text": text}))


@pytest.mark.parametrize("text", ["\\u0000", "\\\\u0000", "", "\ufffd"])
def test_text_that_only_looks_like_a_nul_is_kept(text: str) -> None:
    fact = read_news(changed(output={"text": text}))

    assert json.loads(fact.document)["output"]["text"] == text


def test_a_moment_is_written_as_the_database_reads_it() -> None:
    fact = read_news(changed(completed_at="2026-11-23T12:00:00\u221205:00"))

    assert json.loads(fact.document)["completed_at"] == "2026-11-23T12:00:00-05:00"


def test_the_first_fact_wins_unless_only_a_later_one_was_observed() -> None:
    synthetic = read_news(encode(facts.ended(BATCH, CELL, ExecutionStatus.TIMED_OUT)))
    later = read_news(encode(facts.ended(BATCH, CELL, ExecutionStatus.CANCELLED)))
    answer = read_news(encode(FACT))
    second = read_news(encode(facts.observed(BATCH, CELL, text="another answer")))

    def winner(*some: Fact | Opening) -> Fact:
        (only,) = first_facts(each for each in some if isinstance(each, Fact))
        return only

    assert winner(synthetic, later) is synthetic
    assert winner(synthetic, answer, later, second) is answer
    assert winner(answer, second, synthetic) is answer
