"""What is kept of a checked job, and how it crosses from one process to another."""

import copy
import json
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.contracts.intake import MAX_FIELDS, MAX_PROBLEMS, Offer, check_job, read_job
from parallax.contracts.job import MAX_METADATA_BYTES, MAX_ONLY, MAX_QUESTIONS, MAX_TAGS
from parallax.contracts.messages import EncodedSubmitJob, SubmitJob, decode, encode
from parallax.contracts.routing import routing_key
from parallax.contracts.submission import OFFER, CheckedJob, Verdict, content_sha256, judge, judge_in_worker

ALLOWED = Offer(regions=frozenset({"us", "eu"}), models={"tiny": frozenset({"us", "eu"})})
JOB: dict[str, Any] = {
    "name": "survey \U0001f600",
    "questions": [
        {"id": "q1", "text": "Why? \u00e9", "tags": ["a", "b"], "metadata": {"z": [1, 2.5, None], "a": "\u20ac"}},
        {"id": "q2", "text": "How?"},
    ],
    "models": [{"id": "tiny", "parameters": {"temperature": 0}}],
    "regions": ["us", "eu"],
    "metadata": {"team": "red", "deep": {"x": [True]}},
}
ONLY = [{"question_id": "q2", "model_id": "tiny", "region": "eu"}]


@pytest.mark.parametrize("document", [JOB, JOB | {"only": ONLY, "retry_of": "earlier"}])
def test_the_content_hash_is_that_of_the_whole_canonical_document(document: dict[str, Any]) -> None:
    spec, problems = check_job(document, ALLOWED)
    assert spec is not None, problems
    canonical = json.dumps(spec.model_dump(mode="json", exclude_defaults=True), sort_keys=True, separators=(",", ":"))
    assert content_sha256(spec) == sha256(canonical.encode()).hexdigest()


def test_a_checked_job_knows_all_but_its_questions() -> None:
    spec, _ = check_job(JOB | {"only": ONLY}, ALLOWED)
    assert spec is not None
    job = CheckedJob.of(spec)
    assert (job.questions, job.batches, job.executions, job.partial) == (2, 1, 1, True)
    assert job.head.model_dump() == spec.model_dump(exclude={"questions", "only"})
    assert CheckedJob.model_validate_json(job.model_dump_json()) == job


def test_a_submission_that_is_published_as_it_was_written_is_read_as_any_other() -> None:
    spec, _ = check_job(JOB, ALLOWED)
    assert spec is not None
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    message = EncodedSubmitJob.of("job-1", json.dumps(JOB, indent=1).encode(), now)
    assert decode(encode(message)) == SubmitJob(job_id="job-1", job=spec, submitted_at=now)
    assert routing_key(message) == "job.submit"


WRONG: dict[str, Any] = {
    "not JSON": b"{",
    "not UTF-8": b'{"name": "\xff"}',
    "UTF-16": json.dumps(JOB).encode("utf-16"),
    "a number no machine holds": json.dumps(JOB).replace("2.5", "1e999").encode(),
    "NaN": json.dumps(JOB).replace("2.5", "NaN").encode(),
    "an integer of thousands of digits": json.dumps(JOB).replace("2.5", "9" * 5_000).encode(),
    "a key given twice": json.dumps(JOB).replace('"tags"', '"id"').encode(),
    "half of a pair": json.dumps(JOB).replace("Why?", "\\ud83d").encode(),
    "NUL": json.dumps(JOB).replace("Why?", "\\u0000").encode(),
    "no object": b"[]",
    "nothing in it": b"{}",
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
changes = st.dictionaries(st.sampled_from([*JOB, "only", "samples", "limits", "x"]), json_values)


def in_worker(body: bytes) -> Verdict:
    (verdict,) = judge_in_worker(OFFER.dump_json(ALLOWED), body)
    return Verdict.model_validate_json(verdict)


@pytest.mark.parametrize("body", [json.dumps(JOB).encode(), *WRONG.values()], ids=["right", *WRONG])
def test_the_verdict_of_a_worker_is_the_same(body: bytes) -> None:
    assert in_worker(body) == judge(body, ALLOWED)


@given(changes)
def test_the_verdict_of_a_worker_is_the_same_whatever_is_sent(changed: dict[str, Any]) -> None:
    body = json.dumps(JOB | changed).encode()
    verdict = judge(body, ALLOWED)
    assert in_worker(body) == verdict
    assert (verdict.job is None) == bool(verdict.problems or verdict.not_json)


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_with_the_bytes_is_reported(body: bytes) -> None:
    verdict = judge(body, ALLOWED)
    assert verdict.job is None
    assert verdict.not_json or verdict.problems


# --- bounds of single parts


def one_problem(document: dict[str, Any]) -> tuple[str, str]:
    _, problems = check_job(document, ALLOWED)
    assert len(problems) == 1, problems
    return problems[0].pointer, problems[0].message


def metadata_of(size: int) -> dict[str, Any]:
    return {"a": "\u00e9" * ((size - len('{"a":""}')) // 2)}


def test_metadata_is_bounded_in_bytes_of_compact_json() -> None:
    fits = metadata_of(MAX_METADATA_BYTES)
    assert check_job(JOB | {"metadata": fits}, ALLOWED)[0] is not None
    larger = {"a": fits["a"] + "x"}
    size = MAX_METADATA_BYTES + 1
    assert one_problem(JOB | {"metadata": larger}) == ("/metadata", f"is {size} bytes long")
    document = copy.deepcopy(JOB)
    document["questions"][1]["metadata"] = larger
    assert one_problem(document) == ("/questions/1/metadata", f"is {size} bytes long")


def test_lists_are_read_as_far_as_they_may_be_long() -> None:
    many = [{"id": f"q{index}", "text": "?"} for index in range(MAX_QUESTIONS + 1)]
    assert one_problem(JOB | {"questions": many}) == (
        "/questions",
        f"should hold at least 1 item and at most {MAX_QUESTIONS}, not {MAX_QUESTIONS + 1}",
    )
    only = [ONLY[0] | {"sample": 0}] * (MAX_ONLY + 1)
    _, problems = check_job(JOB | {"only": only}, ALLOWED)
    assert (problems[0].pointer, problems[0].message) == (
        "/only",
        f"should hold at least 1 item and at most {MAX_ONLY}, not {MAX_ONLY + 1}",
    )
    assert len(problems) == MAX_PROBLEMS


def test_an_object_of_many_keys_is_one_problem() -> None:
    surplus = {f"k{index}": 1 for index in range(100_000)}
    document = copy.deepcopy(JOB)
    document["questions"][0] |= surplus
    place, message = one_problem(document)
    assert place == "/questions/0"
    assert message.startswith("holds 100004 keys")
    assert one_problem(JOB | surplus) == ("", "holds more than 10000 values besides questions, only and metadata")


def test_misspelt_keys_are_named_one_by_one() -> None:
    document = copy.deepcopy(JOB)
    document["questions"][0] |= {f"k{index}": 1 for index in range(MAX_FIELDS - 4)}
    _, problems = check_job(document, ALLOWED)
    assert len(problems) == MAX_FIELDS - 4
    assert {problem.message for problem in problems} == {"unknown key"}


def test_tags_are_counted_before_they_are_looked_at() -> None:
    document = copy.deepcopy(JOB)
    document["questions"][0]["tags"] = [7] * (MAX_TAGS + 1)
    assert one_problem(document)[0] == "/questions/0"


def test_every_list_of_tags_must_be_one() -> None:
    """In Python a text is a sequence of texts; in JSON it is not a list."""
    document = copy.deepcopy(JOB)
    document["questions"][0]["tags"] = "history"
    assert one_problem(document) == ("/questions/0/tags", "Input should be a valid array")


def test_the_first_of_two_equal_keys_is_not_silently_lost() -> None:
    body = b'{"name": "a", "metadata": {"b": [{"c~/": 1, "c~/": 2}]}, "name": "b", "name": "c"}'
    _, problems = read_job(body, ALLOWED)
    twice = [problem.pointer for problem in problems if problem.message == "is given twice"]
    assert sorted(twice) == ["/metadata/b/0/c~0~1", "/name"]
