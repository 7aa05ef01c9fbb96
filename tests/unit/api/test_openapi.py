"""The OpenAPI document leads somewhere: each link names an operation, all its ids, and values that answers have."""

from collections.abc import Iterator
from typing import Any

import pytest

from results.api.app import routed

DOCUMENT: dict[str, Any] = routed().openapi()
OPERATIONS: dict[str, dict[str, Any]] = {
    operation["operationId"]: operation | {"path": path}
    for path, operations in DOCUMENT["paths"].items()
    for operation in operations.values()
}


def links() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    for name, operation in OPERATIONS.items():
        for status, response in operation["responses"].items():
            for link, details in response.get("links", {}).items():
                yield name, status, link, details


def resolved(schema: dict[str, Any], pointer: str) -> dict[str, Any]:
    """The schema of the part of an answer that a pointer names."""
    for part in pointer.split("/")[1:]:
        schema = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        schema = schema["items"] if part.isdecimal() else schema["properties"][part]
    return schema


def test_every_operation_has_a_name_of_its_own() -> None:
    assert len(OPERATIONS) == sum(map(len, DOCUMENT["paths"].values()))
    assert {"list_jobs", "submit_job", "get_execution"} <= OPERATIONS.keys()


@pytest.mark.parametrize(("name", "status", "link", "details"), list(links()))
def test_a_link_can_be_followed(name: str, status: str, link: str, details: dict[str, Any]) -> None:
    target = OPERATIONS[details["operationId"]]
    assert link == details["operationId"]
    assert details["parameters"].keys() == {p["name"] for p in target["parameters"] if p["in"] == "path"}
    answer = OPERATIONS[name]["responses"][status]["content"]["application/json"]["schema"]
    for expression in details["parameters"].values():
        if expression.startswith("$response.body#"):
            assert resolved(answer, expression.partition("#")[2])["type"] == "string"
        else:
            assert expression == "$request.path.job_id"
            assert "{job_id}" in OPERATIONS[name]["path"]
