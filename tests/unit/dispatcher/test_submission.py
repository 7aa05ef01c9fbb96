"""Whatever bytes arrive, a submission is read or refused with its problems."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.submission import MAX_PROBLEM_CHARS, Refusal, Submission, read_submission
from parallax.contracts.intake import Offer
from parallax.contracts.messages import Problem

OFFER = Offer(regions=frozenset({"us", "eu"}), models={"tiny": frozenset({"us", "eu"})})

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
