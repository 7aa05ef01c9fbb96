"""What is shown about jobs: lines, tables and the live picture, safe whatever a model said."""

import io
import json
from typing import Any

import pytest
from rich.console import Console, RenderableType

from parallax.client.events import JobEvent
from parallax.contracts.answers import Job, Matrix
from parallax.errors import InvalidInputError
from parallax_cli.options import parse_where
from parallax_cli.outcome import job_exit_code, summary_lines
from parallax_cli.tables import answers_table
from parallax_cli.view import duration, event_line, live_view, remaining_s, simulation_note

HOSTILE = "\x1b]0;owned\x07[bold]=1+1\u202e"


def job(**fields: Any) -> Job:
    document: dict[str, Any] = {
        "id": "job-1", "name": "n", "status": "running", "reason": None, "created_at": "2026-01-01T00:00:00Z",
        "submitted_at": None, "accepted_at": None, "started_at": None, "finished_at": None, "questions": 4,
        "batches": 4, "executions": 24, "counts": {"completed": 6}, "retry_of": None, "metadata": {},
        "place_in_queue": None, "not_started": None, "lanes": (), "tokens": {"prompt": 1, "completion": 2},
        "cost": None, "timings": {"waited_s": 0.0, "ran_s": 10.0}, "running": (), "spec": None, "problems": (),
        "plan": {"barrier": "question", "samples": 1, "models": [{"model_id": "m", "regions": ["us", "eu"]}]},
    } | fields  # fmt: skip
    return Job.model_validate_json(json.dumps(document))


def shown(renderable: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=150, markup=False, emoji=False, highlight=False)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0.04, "0.0 s"), (59.9, "59.9 s"), (61, "1:01"), (3_725, "1:02:05")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_the_rest_is_estimated_from_the_pace_so_far() -> None:
    assert remaining_s(job()) == pytest.approx(30.0)
    assert remaining_s(job(counts={})) is None
    assert remaining_s(job(status="completed")) is None


def test_the_live_picture_says_what_runs_where() -> None:
    running = [
        {
            "execution_id": "00000000-0000-0000-0000-000000000001", "question_id": "q2", "model_id": "m",
            "region": "eu", "executor_id": "e", "since": "2026-01-01T00:00:00Z",
        }
    ]  # fmt: skip
    text = shown(live_view(job(running=running), {"us": True}, "a notice"))
    assert "6/24 executions" in text
    assert "about 30.0 s left" in text
    assert "us (simulated)  0 running" in text
    assert "eu              1 running  q2/m" in text
    assert "a notice" in text


def test_simulated_regions_are_said_to_be() -> None:
    note = simulation_note(job(), {"us": True, "eu": True, "apac": True})
    assert note is not None
    assert "us, eu are simulated" in note
    assert "nothing about bias" in note
    assert simulation_note(job(), {"us": False}) is None


@pytest.mark.parametrize(
    ("kind", "data", "line"),
    [
        ("job.accepted", {"questions": 2, "executions": 12}, "accepted: 2 questions, 12 executions"),
        (
            "batch.completed",
            {"batch": {"lane": "all", "question_index": 2}, "counts": {"completed": 5, "failed": 1, "timed_out": 0}},
            "batch 3 [all] done: 5 completed, 1 failed",
        ),
        ("job.cancelled", {"reason": {"message": HOSTILE}}, "cancelled: \\x1b]0;owned\\x07[bold]=1+1\\u202e"),
        ("job.finished", {"outcome": "failed", "reason": {"message": "m"}}, "finished: failed (m)"),
        ("progress", {}, None),
        ("batch.completed", {}, "batch 1 [None] done: nothing"),
    ],
)
def test_events_are_told_in_one_line(kind: str, data: dict[str, Any], line: str | None) -> None:
    assert event_line(JobEvent("1", kind, data)) == line


def test_answers_stand_side_by_side_and_harmless() -> None:
    execution = {
        "id": "00000000-0000-0000-0000-000000000001", "job_id": "j", "sample": 0, "status": "completed",
        "refused": False, "output_chars": 3, "duration_s": 1.0, "excerpt": HOSTILE,
    }  # fmt: skip
    cells = [
        {"model_id": "m", "region": "us", "counts": {"completed": 2}, "executions": [execution, execution]},
        {"model_id": "m", "region": "eu", "counts": {}, "executions": [{**execution, "status": "timed_out"}]},
        {
            "model_id": "m",
            "region": "apac",
            "counts": {},
            "executions": [{**execution, "excerpt": "", "job_id": "j-again"}],
        },
    ]
    rows = [{"question_index": 0, "question_id": "q1", "text": "Why?\nReally?", "cells": cells}]
    matrix = Matrix.model_validate_json(
        json.dumps(
            {
                "job_id": "j", "jobs": ["j", "j-again"], "models": ["m"], "regions": ["us", "eu", "apac", "mars"],
                "samples": 2, "rows": rows, "next_cursor": None,
            }
        )
    )  # fmt: skip
    text = shown(answers_table(matrix, matrix.rows))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\x1b]0;owned\\x07[bold]=1+1\\u202e" in text
    for part in ("(+1 more samples)", "timed_out", "[empty answer]", "(from j-again)", "Why? Really?"):
        assert part in text
    assert "(from j)" not in text, "only what another job answered is said to be from there"


def test_the_end_is_told_with_its_reason() -> None:
    ended = job(
        status="failed",
        reason={"code": "below_min_success_rate", "message": "6 of 24 completed"},
        problems=[{"pointer": "/a", "message": HOSTILE, "allowed": None}],
        not_started=18,
    )
    text = "\n".join(summary_lines(ended, {}, "/home"))
    assert "job job-1: failed (6 of 24 completed)" in text
    assert "18 not started in 10.0 s; 3 tokens" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("status", "code"), [("completed", 0), ("failed", 3), ("cancelled", 5), ("rejected", 2), ("running", 0)]
)
def test_jobs_end_with_their_code(status: str, code: int) -> None:
    assert job_exit_code(job(status=status)) == code


def test_filters() -> None:
    assert parse_where(["model=a region=us,eu", "region=apac", "status=failed"]) == {
        "model": ["a"],
        "region": ["us", "eu", "apac"],
        "status": ["failed"],
    }
    assert parse_where(None) == {}


@pytest.mark.parametrize("condition", ["model", "model=", "colour=red", "status=lost"])
def test_filters_that_cannot_be(condition: str) -> None:
    with pytest.raises(InvalidInputError, match="--where"):
        parse_where([condition])
