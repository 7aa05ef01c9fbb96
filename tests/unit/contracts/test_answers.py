"""What clients rely on in the API's answers."""

import inspect

import pytest
from pydantic import BaseModel

from parallax.contracts import answers, installation
from parallax.contracts.answers import JobStatus
from parallax.contracts.rates import Answer

MODELS = [
    model
    for module in (answers, installation)
    for _, model in inspect.getmembers(module, inspect.isclass)
    if issubclass(model, Answer) and model is not Answer
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_what_a_newer_service_adds_is_ignored_and_answers_do_not_change(model: type[BaseModel]) -> None:
    assert model.model_config.get("extra") == "ignore"
    assert model.model_config.get("frozen") is True


def test_a_field_of_a_newer_service_does_no_harm() -> None:
    page = answers.JobPage.model_validate_json('{"items": [], "next_cursor": null, "newer": 1}')
    assert page == answers.JobPage(items=(), next_cursor=None)


def test_jobs_end_in_four_ways() -> None:
    assert {status.value for status in JobStatus if status.ended} == {"completed", "failed", "cancelled", "rejected"}
