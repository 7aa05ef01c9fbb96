"""The OpenAPI document: what FastAPI finds by itself, and the parts that handlers name."""

import json
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from parallax.contracts.job import JobSpec
from results.api.problems import MEDIA_TYPE, ProblemDetails
from results.api.requests import CancelRequest, JudgeRequest, RetryRequest

_PROBLEM: Final = {"$ref": "#/components/schemas/ProblemDetails"}
_DESCRIPTIONS: Final = {
    400: "The body is not a JSON document.",
    401: "A key is needed, or this one opens nothing.",
    403: "The key's scope does not cover this, or another site's page sent it.",
    404: "There is no such job or execution.",
    406: "None of the accepted media types can be produced, or this installation cannot write that format.",
    409: "The job's state or content forbids this.",
    413: "The body is too large, or more is asked for than one answer can hold.",
    414: "The path and query are too long.",
    415: "The body is not sent as JSON.",
    422: "A parameter or a part of the body is wrong; every place is listed.",
    500: "Something went wrong in the service; its log has more under the request id.",
    503: "The database or the broker is away: repeat the request after `Retry-After` seconds.",
}

Responses = dict[int | str, dict[str, Any]]


def problems(*statuses: int) -> Responses:
    """The problems a resource may answer with."""
    return {
        status: {"description": _DESCRIPTIONS[status], "content": {MEDIA_TYPE: {"schema": _PROBLEM}}}
        for status in statuses
    }


EXPORTED: Final[dict[str, Any]] = {
    "description": "The file.",
    "content": {
        "application/jsonl": {
            "schema": {"type": "string"},
            "example": '{"execution_id": "…", "status": "completed"}\n',
        },
        "text/csv": {"schema": {"type": "string"}},
        "application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}},
    },
}

STREAMED: Final[dict[str, Any]] = {
    "description": "Server-sent events, closed after `done`.",
    "content": {
        "text/event-stream": {
            "schema": {"type": "string"},
            "example": 'id: 7\nevent: batch.completed\ndata: {"kind":"batch_completed"}\n\n',
        }
    },
}

JOB_EXAMPLE: Final[dict[str, Any]] = {
    "name": "bias-detection",
    "questions": [{"id": "greatest-invention", "text": "What is the most important invention in history?"}],
    "models": [{"id": "smollm2-greedy", "model": "smollm2-135m", "parameters": {"temperature": 0}}],
    "regions": ["us", "eu", "apac"],
    "system_prompt": "You are a helpful assistant based in {region_name}.",
    "parameters": {"max_tokens": 64, "seed": 7},
}

JOB_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "The job, as in a job file or in the message `SubmitJob`.",
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/JobSpec"},
                "examples": {"bias-detection": {"summary": "One question, three regions", "value": JOB_EXAMPLE}},
            }
        },
    }
}


def optional_body(schema: str, example: dict[str, Any]) -> dict[str, Any]:
    """A request body that may be left out."""
    reference = {"$ref": f"#/components/schemas/{schema}"}
    return {
        "requestBody": {
            "required": False,
            "content": {"application/json": {"schema": reference, "example": example}},
        }
    }


def required_body(schema: str, example: dict[str, Any]) -> dict[str, Any]:
    """A request body that must be there."""
    body = optional_body(schema, example)
    body["requestBody"]["required"] = True
    return body


DESCRIPTION: Final = """
Submit jobs, watch them and query what came of them.

* Every error is a problem (RFC 9457, `application/problem+json`) with a stable `type`, the request's id, and JSON
  pointers or parameter names in `errors`.
* Lists are keyset pages: pass `next_cursor` on as `cursor`, with the same filters.
* On loopback the API is open. Elsewhere a key is needed: `Authorization: Bearer plx_…`, or the password of HTTP
  Basic for browsers.
* Costs are estimates from the catalog's price table.
"""
"""The document's introduction."""

_OF_A_JOB: Final = (
    "get_job", "list_batches", "list_executions", "get_matrix", "get_summary", "get_export", "follow_job",
    "cancel_job", "retry_job", "get_comparison", "list_judgements",
)  # fmt: skip
"""What can be asked of a job by its id."""


def _job_links(job_id: str) -> dict[str, dict[str, Any]]:
    return {operation: {"operationId": operation, "parameters": {"job_id": job_id}} for operation in _OF_A_JOB}


def _execution_link(job_id: str, execution_id: str) -> dict[str, dict[str, Any]]:
    parameters = {"job_id": job_id, "execution_id": execution_id}
    names = ("get_execution", "judge_execution")
    return {operation: {"operationId": operation, "parameters": parameters} for operation in names}


_LINKS: Final = {
    ("submit_job", "202"): _job_links("$response.body#/id"),
    ("retry_job", "202"): _job_links("$response.body#/id"),
    ("cancel_job", "202"): _job_links("$response.body#/id"),
    ("list_jobs", "200"): {
        "get_job": {"operationId": "get_job", "parameters": {"job_id": "$response.body#/items/0/id"}}
    },
    ("get_job", "200"): _job_links("$response.body#/id"),
    ("list_executions", "200"): _execution_link("$request.path.job_id", "$response.body#/items/0/id"),
    ("get_matrix", "200"): _execution_link(
        "$response.body#/rows/0/cells/0/executions/0/job_id", "$response.body#/rows/0/cells/0/executions/0/id"
    ),
}
"""Where an answer leads: which of its values the next request takes (OpenAPI links)."""

_REFERENCES: Final = "#/components/schemas/{model}"


def describe(app: FastAPI) -> None:
    """Let the application answer with the document of this module."""
    cached: dict[str, Any] = {}

    def document() -> dict[str, Any]:
        if not cached:
            cached.update(_document(app))
        return cached

    app.openapi = document  # type: ignore[method-assign] # FastAPI's documented way to extend the document


def _document(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(title=app.title, version=app.version, description=DESCRIPTION.strip(), routes=app.routes)
    for operations in made["paths"].values():
        for operation in operations.values():
            operation["responses"] |= {str(status): part for status, part in problems(414).items()}
            for status, response in operation["responses"].items():
                if links := _LINKS.get((operation["operationId"], status)):
                    response["links"] = links
    answers = made["components"]["schemas"]
    made["components"]["schemas"] = dict(sorted((answers | _requests(answers)).items()))
    return made


def _requests(answers: dict[str, Any]) -> dict[str, Any]:
    """Schemas of bodies and problems. What is described otherwise in answers is called ``...Input`` here."""
    models = (JobSpec, CancelRequest, JudgeRequest, RetryRequest, ProblemDetails)
    _, found = models_json_schema([(model, "validation") for model in models], ref_template=_REFERENCES)
    schemas: dict[str, Any] = found["$defs"]
    schemas["JobSpec"]["examples"] = [JOB_EXAMPLE]
    written = json.dumps(schemas)
    other = [name for name, schema in schemas.items() if answers.get(name, schema) != schema]
    for name in other:
        written = written.replace(f'"#/components/schemas/{name}"', f'"#/components/schemas/{name}Input"')
    renamed: dict[str, Any] = json.loads(written)
    return {f"{name}Input" if name in other else name: schema for name, schema in renamed.items()}
