"""The parameters that several resources share, with their limits."""

import json
import re
from datetime import datetime
from typing import Annotated, Final

from fastapi import Path, Query
from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, JsonValue

from parallax.contracts.answers import JobStatus
from parallax.contracts.model import JobId, Name, RegionName
from parallax.contracts.outcomes import ExecutionStatus
from results.api.cursors import MAX_CURSOR_CHARS
from results.api.problems import invalid_parameter
from results.api.queries.executions import ExecutionFilter
from results.api.queries.jobs import JobFilter
from results.api.requests import StorableText

MAX_FILTER_VALUES: Final = 20
"""Values of one filter: more are a list nobody typed."""
MAX_METADATA_CHARS: Final = 400
_DATE_FIRST: Final = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]", re.ASCII)
"""What moments begin with; a bare number would be read as seconds since 1970."""
EARLIEST: Final = datetime.fromisoformat("0001-01-02T00:00:00+00:00")
LATEST: Final = datetime.fromisoformat("9999-12-30T00:00:00+00:00")


def _storable_moment(moment: datetime) -> datetime:
    if not EARLIEST <= moment <= LATEST:
        raise ValueError("is outside of the years 1 to 9999")
    return moment


def _written_out(text: object) -> object:
    if isinstance(text, str) and not _DATE_FIRST.match(text):
        raise ValueError("is not an RFC 3339 moment, for example 2026-11-23T12:00:00Z")
    return text


Moment = Annotated[AwareDatetime, BeforeValidator(_written_out), AfterValidator(_storable_moment)]


def _said(text: object) -> object:
    return {"true": True, "false": False}.get(text, text) if isinstance(text, str) else text


Flag = Annotated[bool, Field(strict=True), BeforeValidator(_said)]
"""``true`` or ``false``, and none of the other words that Pydantic takes for them."""

JobPath = Annotated[JobId, Path(description="Id of a job.", examples=["bias-detection-3f2a9c"])]
Cursor = Annotated[
    str | None,
    Query(max_length=MAX_CURSOR_CHARS, description="`next_cursor` of the page before, with the same filters."),
]
PageSize = Annotated[int, Query(ge=1, le=500, description="Items of a page.")]


async def execution_filter(
    question: Annotated[list[Name], Query(max_length=MAX_FILTER_VALUES, description="Only these questions.")] = [],  # noqa: B006
    model: Annotated[list[Name], Query(max_length=MAX_FILTER_VALUES, description="Only these models.")] = [],  # noqa: B006
    region: Annotated[list[RegionName], Query(max_length=MAX_FILTER_VALUES, description="Only these regions.")] = [],  # noqa: B006
    status: Annotated[list[ExecutionStatus], Query(max_length=4, description="Only these statuses.")] = [],  # noqa: B006
) -> ExecutionFilter:
    """The executions a request is about, for ``Depends``. Each parameter may be repeated."""
    return ExecutionFilter(
        question=tuple(dict.fromkeys(question)),
        model=tuple(dict.fromkeys(model)),
        region=tuple(dict.fromkeys(region)),
        status=tuple(dict.fromkeys(status)),
    )


async def job_filter(  # noqa: PLR0917 - FastAPI passes query parameters by name
    status: Annotated[list[JobStatus], Query(max_length=7, description="Only these statuses.")] = [],  # noqa: B006
    name: Annotated[
        StorableText | None,
        Query(min_length=1, max_length=200, description="With this text in the name, in upper or lower case."),
    ] = None,
    metadata: Annotated[
        list[Annotated[StorableText, Field(max_length=MAX_METADATA_CHARS)]],
        Query(max_length=5, description="`key=value` in the job's metadata; repeated, all must hold."),
    ] = [],  # noqa: B006
    created_after: Annotated[Moment | None, Query(description="Heard of at this moment or later.")] = None,
    created_before: Annotated[Moment | None, Query(description="Heard of before this moment.")] = None,
    retry_of: Annotated[JobId | None, Query(description="Only jobs that repeat a part of this one.")] = None,
) -> JobFilter:
    """The jobs a list is about, for ``Depends``."""
    return JobFilter(
        status=tuple(dict.fromkeys(status)),
        name=name,
        metadata=tuple(_metadata(item) for item in metadata),
        created_after=created_after,
        created_before=created_before,
        retry_of=retry_of,
    )


def _metadata(item: str) -> tuple[str, tuple[JsonValue, ...]]:
    """The key and what its value may be: the text, or what the text says in JSON (``3``, ``true``)."""
    key, equals, value = item.partition("=")
    if not key or not equals:
        raise invalid_parameter("metadata", f"{item[:100]!r} is not key=value", "key=value")
    try:
        parsed = json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return key, (value,)
    return key, (value, parsed) if isinstance(parsed, bool | int | float) and abs(parsed) < 1e300 else (value,)


def _no_constant(name: str) -> JsonValue:
    raise ValueError(name)
