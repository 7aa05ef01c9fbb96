"""The stored state of a job, as another version of the dispatcher may have written it."""

import json
from typing import Any

from dispatcher.progress import Cancel, StopRule, codec, step
from tests.unit.dispatcher.matrix import T0, Matrix


def from_a_newer_version(document: Any) -> Any:
    """The document with keys that this version does not know, at every depth."""
    match document:
        case dict():
            return {key: from_a_newer_version(value) for key, value in document.items()} | {"surprise": 1}
        case list():
            return [from_a_newer_version(each) for each in document]
        case _:
            return document


def test_keys_that_a_newer_dispatcher_adds_are_ignored() -> None:
    matrix = Matrix({"eu": (2, 2), "us": (2, 2)}, stop=StopRule(0.5, 1))
    job, _ = step(matrix.job(), matrix.start(), T0)
    job, _ = step(job, matrix.completed("eu", 0), T0)
    job, _ = step(job, Cancel("no need"), T0)
    stored = json.loads(json.dumps(codec.encode(job)))
    assert json.dumps(from_a_newer_version(stored)).count("surprise") >= 8
    assert codec.decode(from_a_newer_version(stored)) == job
