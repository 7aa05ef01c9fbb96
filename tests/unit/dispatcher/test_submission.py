"""Whatever bytes arrive, a submission is read or refused with its problems."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.submission import (
    MAX_PROBLEM_CHARS,
    Refusal,
    Submission,
    job_id_in,
    outcome,
    read_in_worker,
    read_submission,
)
from parallax.contracts.intake import Offer
from parallax.contracts.messages import Problem
from parallax.contracts.submission import OFFER as ALLOWED

OFFER = Offer(regions=frozenset({"us", "eu"}), models={"tiny": frozenset({"us", "eu"})})
OFFER_DOCUMENT = ALLOWED.dump_json(OFFER)

JOB: dict[str, Any] = {
    "name": "test",
    "questions": [{"id": "q", "text": "Why?", "tags": ["a"], "metadata": {"source": 1}}],
    "models": [{"id": "tiny"}],
    "regions": ["us"],
}


def message(**changes: Any) -> bytes:
    return json.dumps({"job_id": "job", "job": JOB, **changes}).encode()


def refused(body: bytes) -> Refusal:
    refusal = read_submission(body, OFFER)
    assert isinstance(refusal, Refusal)
    assert refusal.problems
    return refusal


def accepted(body: bytes) -> Submission:
    submission = read_submission(body, OFFER)
    assert isinstance(submission, Submission)
    return submission


def test_kind_and_version_may_be_left_out() -> None:
    assert accepted(message()) == accepted(message(kind="submit_job", version=1))


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"kind": "cancel_job"}, "/kind"),
        ({"version": 2}, "/version"),
        ({"submitted_at": "yesterday"}, "/submitted_at"),
        ({"priority": 1}, "/priority"),
    ],
)
def test_the_envelope_is_checked_with_the_job(changes: dict[str, Any], place: str) -> None:
    refusal = refused(message(**changes, job={**JOB, "samples": 0}))
    assert {problem.pointer for problem in refusal.problems} == {place, "/job/samples"}
    assert refusal.job_id == "job"


def test_a_message_without_a_job_says_so() -> None:
    refusal = refused(b'{"job_id": "job"}')
    assert Problem(pointer="/job", message="is missing") in refusal.problems


@pytest.mark.parametrize("job_id", [None, 7, "", "UPPER", "a" * 81, "a\nb", ["job"], "job\u0000"])
def test_a_job_id_that_nobody_could_use_is_no_job_id(job_id: object) -> None:
    refusal = refused(message(job_id=job_id))
    assert refusal.job_id is None
    assert "/job_id" in {problem.pointer for problem in refusal.problems}


def test_equal_jobs_have_equal_content_however_they_are_written() -> None:
    written_out = {**JOB, "samples": 1, "barrier": "question"}
    backwards = json.loads(json.dumps(dict(reversed(written_out.items()))))
    assert accepted(message()).job.content_sha256 == accepted(message(job=backwards)).job.content_sha256
    changed = {**JOB, "metadata": {"a": 1}}
    assert accepted(message()).job.content_sha256 != accepted(message(job=changed)).job.content_sha256


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(["name", "questions", "models", "regions", "samples", "only", "system_prompt", "limits"])
jobs = st.dictionaries(keys, json_values).map(lambda changes: {**JOB, **changes}) | json_values


def answers(body: bytes) -> None:
    """Reading gives an answer that can be sent and stored."""
    result = read_submission(body, OFFER)
    if isinstance(result, Refusal):
        assert result.problems
        for problem in result.problems:
            assert "\0" not in problem.model_dump_json()
            assert len(problem.message) <= MAX_PROBLEM_CHARS


@given(job=jobs)
def test_any_job_is_read_or_refused(job: object) -> None:
    answers(json.dumps({"job_id": "job", "job": job}).encode())


@given(envelope=st.dictionaries(st.sampled_from(["kind", "job_id", "version", "x"]) | st.text(), json_values))
def test_any_envelope_is_read_or_refused(envelope: dict[str, object]) -> None:
    answers(json.dumps({"job": JOB, **envelope}).encode())


@given(body=st.binary())
def test_any_bytes_are_refused(body: bytes) -> None:
    answers(body)


# --- in another process


def through_worker(body: bytes) -> Submission | Refusal:
    return outcome(list(read_in_worker(OFFER_DOCUMENT, body)))


@given(job=jobs)
def test_a_worker_finds_what_is_found_in_place(job: object) -> None:
    body = json.dumps({"job_id": "job", "job": job}).encode()
    assert through_worker(body) == read_submission(body, OFFER)


@given(body=st.binary())
def test_a_worker_finds_what_is_found_in_place_whatever_the_bytes(body: bytes) -> None:
    assert through_worker(body) == read_submission(body, OFFER)


def test_all_rows_come_through_a_worker() -> None:
    asked = [{"id": f"q{index}", "text": "x" * 100_000} for index in range(10)]
    only = [{"question_id": f"q{index}", "model_id": "tiny", "region": "us"} for index in range(3)]
    body = message(job={**JOB, "questions": asked, "only": only})
    submission = accepted(body)
    assert through_worker(body) == submission
    assert len(submission.questions) == 5
    assert [row["id"] for piece in submission.questions for row in json.loads(piece)] == [q["id"] for q in asked]
    assert [row["question_index"] for piece in submission.chosen for row in json.loads(piece)] == [0, 1, 2]


# --- the id of what is not read


@pytest.mark.parametrize(
    ("body", "job_id"),
    [
        (b'{"job_id": "a-1", "job": [', "a-1"),
        (b' {"kind":"submit_job","version":1,"submitted_at":null,"job_id":"a","job":', "a"),
        (b'[{}], "job_id": "a" , "submitted_at": "2026"}\n', "a"),
        (b'{"job": {"job_id": "inner"', None),
        (b'{"job": {"job_id": "inner"}}', None),
        (b'{"job": {"metadata": {"x": "\\"job_id\\":\\"inner\\"}"}}}', None),
        (b'{"job_id": "Not An Id", "job": 1', None),
        (b'{"kind": "a\\"b", "job_id": "a"', None),
        (b"", None),
        (b"\xff" * 5_000, None),
    ],
)
def test_only_an_id_beside_the_job_is_found(body: bytes, job_id: str | None) -> None:
    assert job_id_in(body) == job_id


@given(before=st.booleans(), job=json_values)
def test_whatever_the_job_holds_its_id_is_found(before: bool, job: object) -> None:
    document = {"job_id": "job-1", "job": job} if before else {"job": job, "job_id": "job-1"}
    assert job_id_in(json.dumps(document).encode()) == "job-1"


def test_a_message_beyond_the_bounds_is_refused_under_its_id() -> None:
    refusal = refused(b'{"job_id": "job", "job": [' + b"[]," * 1_000_000 + b"1]}")
    assert refusal.job_id == "job"
    assert [problem.message for problem in refusal.problems] == ["holds more than 1000000 values"]


def test_a_message_with_many_keys_is_one_problem() -> None:
    refusal = refused(message(**{f"k{index}": 1 for index in range(1_000)}))
    assert [problem.message for problem in refusal.problems] == ["holds 1001 keys beside the job"]


def test_a_key_of_a_message_that_is_given_twice_has_its_place() -> None:
    refusal = refused(
        message().replace(b'"name"', b'"models": 1, "name"').replace(b'"job_id"', b'"job_id": "x", "job_id"')
    )
    assert [problem.pointer for problem in refusal.problems if problem.message == "is given twice"] == [
        "/job_id", "/job/models",
    ]  # fmt: skip
