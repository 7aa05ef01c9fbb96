"""The client reads what the API writes: every model of the client is a part of the API's model of the same name."""

import pytest
from pydantic import BaseModel

from parallax.client import models as read
from results.api import installation
from results.api import models as written

READ = [
    model
    for model in vars(read).values()
    if isinstance(model, type) and issubclass(model, read.Answer) and model is not read.Answer
]


@pytest.mark.parametrize("model", READ, ids=lambda model: model.__name__)
def test_the_client_reads_fields_the_api_writes(model: type[BaseModel]) -> None:
    origin = getattr(written, model.__name__, None) or getattr(installation, model.__name__)
    schema, promised = model.model_json_schema(), origin.model_json_schema()
    assert set(schema["properties"]) <= set(promised["properties"])
    for name, field in model.model_fields.items():
        annotated = str(field.annotation).replace("parallax.client.models", origin.__module__)
        assert annotated == str(origin.model_fields[name].annotation), name


def test_the_statuses_are_the_same() -> None:
    assert [status.value for status in read.JobStatus] == [status.value for status in written.JobStatus]
    assert {status.value for status in read.JobStatus if status.ended} == {
        status.value for status in written.JobStatus if status.ended
    }
