"""A bad job is told everything that is wrong with it, with the place and what is allowed."""

import copy
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.contracts.intake import MAX_PROBLEMS, Offer, check_job

OFFER = Offer(
    regions=frozenset({"us", "eu", "apac"}),
    models={"small": frozenset({"us", "eu", "apac"}), "european": frozenset({"eu"})},
)
GOOD: dict[str, Any] = {
    "name": "survey",
    "questions": [{"id": "q1", "text": "Why?"}, {"id": "q2", "text": "How?"}],
    "models": [{"id": "small"}, {"id": "cold", "model": "small", "parameters": {"temperature": 0}}],
    "regions": ["us", "eu"],
    "system_prompt": "You live in {region_name} {{literally}}.",
}


def changed(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    node: Any = document
    *steps, last = path.split(".")
    for step in steps:
        node = node[int(step)] if step.isdigit() else node[step]
    node[int(last) if last.isdigit() else last] = value
    return document


def test_a_good_job_has_no_problems() -> None:
    spec, problems = check_job(GOOD, OFFER)
    assert problems == ()
    assert spec is not None
    assert spec.models[1].catalog_name == "small"


@pytest.mark.parametrize(
    ("path", "value", "pointer", "message", "allowed"),
    [
        ("colour", "red", "/colour", "unknown key", "questions"),
        ("models.0.temprature", 1, "/models/0/temprature", "unknown key", "parameters"),
        ("limits", {"max_attempts": 11}, "/limits/max_attempts", "less than or equal to 10", None),
        ("questions", [], "/questions", "at least 1", None),
        ("questions.1.id", "q1", "/questions/1/id", "already used at /questions/0", None),
        ("questions.0.text", "", "/questions/0/text", "at least 1", None),
        ("models.1.id", "small", "/models/1/id", "already used at /models/0", None),
        ("models.0.id", "gpt-9", "/models/0/id", "unknown model 'gpt-9'", "european, small"),
        ("models.0.model", "gpt-9", "/models/0/model", "unknown model 'gpt-9'", "european, small"),
        ("models.0.regions", ["mars"], "/models/0/regions/0", "unknown region 'mars'", "apac, eu, us"),
        ("models.0.model", "european", "/models/0", "does not run in us", "eu"),
        ("regions", ["us", "us"], "/regions/1", "named twice", "each region once"),
        ("regions.0", "US", "/regions/0", "unknown region 'US'", "apac, eu, us"),
        ("system_prompt", "in {place}", "/system_prompt", "unknown placeholder {place}", "{region}"),
        ("system_prompt", "in {region!r}", "/system_prompt", "unknown placeholder", None),
        ("system_prompt", "in {region", "/system_prompt", "unbalanced", "literal braces"),
        ("barrier", "none", "/barrier", "'question' or 'region'", "'question' or 'region'"),
        ("samples", "3", "/samples", "integer", None),
        ("samples", 101, "/samples", "less than or equal to 100", None),
        ("min_success_rate", 1.5, "/min_success_rate", "less than or equal to 1", None),
        ("only", [{"question_id": "q9", "model_id": "small", "region": "us"}], "/only/0", "names no execution", None),
    ],
)
def test_each_problem_has_its_place(path: str, value: Any, pointer: str, message: str, allowed: str | None) -> None:
    spec, problems = check_job(changed(path, value), OFFER)
    assert spec is None
    found = [p for p in problems if p.pointer == pointer and message in p.message]
    assert found, problems
    if allowed is not None:
        assert allowed in (found[0].allowed or "")


def test_every_problem_is_reported_at_once() -> None:
    document = changed("regions", ["us", "moon"]) | {"surprise": 1, "samples": 0, "barrier": "x"}
    document["questions"].append({"id": "q1", "text": 5})
    pointers = {problem.pointer for problem in check_job(document, OFFER)[1]}
    assert {"/regions/1", "/surprise", "/samples", "/barrier", "/questions/2/text", "/questions/2/id"} <= pointers


def test_a_batch_is_bounded() -> None:
    models = [{"id": f"m{n}", "model": "small"} for n in range(100)]
    _, problems = check_job(GOOD | {"models": models, "samples": 100}, OFFER)
    assert [(p.message, p.allowed) for p in problems] == [
        ("one question makes 20000 executions (models x regions x samples)", "at most 5000 executions in a batch")
    ]


def test_the_prompts_of_a_batch_are_bounded() -> None:
    """Five thousand copies of one long question would be gigabytes in one transaction and in the broker."""
    models = [{"id": f"m{n}", "model": "small"} for n in range(50)]
    wide = GOOD | {"models": models, "samples": 50, "regions": ["us", "eu"], "system_prompt": None}
    long = "\u00e9" * 26_843
    _, problems = check_job(
        wide | {"questions": [{"id": "fits", "text": long}, {"id": "not", "text": long + "ee"}]}, OFFER
    )
    assert [(p.pointer, p.message, p.allowed) for p in problems] == [
        (
            "/questions/1/text",
            "makes 268440000 bytes of prompts (5000 executions, each with its own copy)",
            "at most 268435456 bytes in a batch",
        )
    ]


def test_problems_are_bounded() -> None:
    rows = [{"id": n} for n in range(1000)]
    assert len(check_job(GOOD | {"questions": rows}, OFFER)[1]) == MAX_PROBLEMS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(JSON)
def test_no_document_breaks_the_check(document: object) -> None:
    spec, problems = check_job(document, OFFER)
    assert spec is None
    assert problems


@given(st.sampled_from([*sorted(GOOD), "only", "samples", "limits"]), JSON)
def test_no_field_breaks_the_check(key: str, value: object) -> None:
    spec, problems = check_job(GOOD | {key: value}, OFFER)
    assert (spec is None) == bool(problems)


@pytest.mark.parametrize("text", ["nul \x00", "lone \ud800 surrogate"])
def test_text_no_database_can_store_is_refused(text: str) -> None:
    _, problems = check_job(changed("questions.0.text", text), OFFER)
    assert [p.pointer for p in problems] == ["/questions/0/text"]


@pytest.mark.parametrize("value", [[], {}, 7, "us", None, [[]]])
def test_a_selection_of_a_broken_matrix_breaks_no_check(value: object) -> None:
    """Found by fuzzing: an id that is a list cannot be a key of a lookup."""
    only = [{"question_id": "q1", "model_id": "small", "region": "us"}]
    for path in ("models.0.id", "models.0.regions", "questions.0.id"):
        check_job({**changed(path, value), "only": only}, OFFER)


def test_deep_nesting_is_refused_before_a_parser_gives_up() -> None:
    value: object = 1
    for _ in range(100):
        value = [value]
    spec, problems = check_job({**GOOD, "metadata": {"deep": value}}, OFFER)
    assert spec is None
    assert [(p.pointer, p.message) for p in problems] == [("/metadata", "is nested too deeply")]


def test_a_document_that_is_wrong_everywhere_is_told_quickly() -> None:
    """Found by fuzzing: the allowed keys were looked up anew for each of thousands of unknown ones."""
    questions = [{"id": f"q{index}", "text": "?", "unknown": 1} for index in range(20_000)]
    began = time.process_time()
    _, problems = check_job({**GOOD, "questions": questions}, OFFER)
    assert len(problems) == MAX_PROBLEMS
    assert time.process_time() - began < 10
