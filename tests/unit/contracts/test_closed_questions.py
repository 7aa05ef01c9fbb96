"""Closed questions: what a job may say about choices, and that it says nothing where it has none."""

from pathlib import Path
from typing import Any

import pytest

from parallax.contracts.intake import Offer, check_job
from parallax.contracts.job import Question
from parallax_cli.questions import read_questions

OFFER = Offer(regions=frozenset({"us"}), models={"m": frozenset({"us"})})


def problems(**question: Any) -> list[tuple[str, str]]:
    job = {"name": "j", "questions": [{"id": "q", "text": "?", **question}], "models": [{"id": "m"}], "regions": ["us"]}
    spec, found = check_job(job, OFFER)
    assert (spec is None) == bool(found)
    return [(problem.pointer, problem.message) for problem in found]


def test_a_closed_question_is_valid() -> None:
    assert problems(choices=["Agree", "Disagree"], expected="agree") == []
    assert problems(choices=["Agree", "Disagree"]) == []


@pytest.mark.parametrize(
    ("question", "pointer"),
    [
        ({"choices": ["Agree", "agree "]}, "/questions/0/choices/1"),
        ({"choices": ["Agree", " "]}, "/questions/0/choices/1"),
        ({"choices": ["Agree"]}, "/questions/0/choices"),
        ({"choices": [str(n) for n in range(21)]}, "/questions/0/choices"),
        ({"choices": ["Agree", "Disagree"], "expected": "Yes"}, "/questions/0/expected"),
        ({"expected": "Yes"}, "/questions/0/expected"),
        ({"choices": ["a" * 201, "b"]}, "/questions/0/choices/0"),
    ],
)
def test_what_a_closed_question_may_not_say(question: dict[str, Any], pointer: str) -> None:
    assert pointer in [place for place, _ in problems(**question)]


def test_an_open_question_is_written_as_before() -> None:
    assert set(Question(id="q", text="?").model_dump(mode="json")) == {"id", "text", "tags", "metadata"}
    closed = Question(id="q", text="?", choices=("a", "b"))
    assert Question.model_validate_json(closed.model_dump_json()) == closed


def test_choices_in_a_file_of_questions(tmp_path: Path) -> None:
    table = tmp_path / "questions.csv"
    table.write_text("id,text,choices,expected,level\nq1,One?,Yes | No,No,2\nq2,Two?,,Paris,3\n", encoding="utf-8")
    assert read_questions(table).questions == [
        {"id": "q1", "text": "One?", "choices": ["Yes", "No"], "expected": "No", "metadata": {"level": "2"}},
        {"id": "q2", "text": "Two?", "metadata": {"choices": "", "expected": "Paris", "level": "3"}},
    ]
    lines = tmp_path / "questions.jsonl"
    lines.write_text('{"id": "q1", "text": "One?", "choices": ["Yes", "No"], "level": 2}\n', encoding="utf-8")
    assert read_questions(lines).questions == [
        {"id": "q1", "text": "One?", "choices": ["Yes", "No"], "metadata": {"level": 2}}
    ]
