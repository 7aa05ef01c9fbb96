"""Options that several commands share, so that they read the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

from parallax.errors import InvalidInputError

JobFile = Annotated[Path, typer.Argument(help="The job file (.yaml, .yml or .json).", show_default=False)]
JobId = Annotated[str, typer.Argument(help="Id of the job.", show_default=False)]
LatestJobId = Annotated[
    str | None, typer.Argument(help="Id of the job; the newest one when left out.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of text.")]
Api = Annotated[
    str | None,
    typer.Option("--api", envvar="PARALLAX_API", help="Address of a running installation, e.g. http://127.0.0.1:8080."),
]
Key = Annotated[
    str | None,
    typer.Option("--key", envvar="PARALLAX_API_KEY", help="Key of that installation's API.", show_default=False),
]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", help="Only executions with FIELD=VALUE; fields: question, model, region, status. Repeat."),
]
NewJobId = Annotated[
    str | None,
    typer.Option("--job-id", help="Id of the new job; repeating the same job with it changes nothing."),
]

FILTERS = ("question", "model", "region", "status")
STATUSES = ("completed", "failed", "timed_out", "cancelled")


def parse_where(conditions: list[str] | None) -> dict[str, list[str]]:
    """The filters in ``--where`` options; values of the same field are alternatives.

    Raises:
        InvalidInputError: One is not FIELD=VALUE, or names an unknown field or status.
    """
    filters: dict[str, list[str]] = {}
    for condition in conditions or ():
        for part in condition.split():
            name, equals, value = part.partition("=")
            if not equals or not value or name not in FILTERS:
                raise InvalidInputError(f"--where {part!r}: expected FIELD=VALUE with FIELD in {', '.join(FILTERS)}")
            filters.setdefault(name, []).extend(value.split(","))
    unknown = [status for status in filters.get("status", ()) if status not in STATUSES]
    if unknown:
        raise InvalidInputError(f"--where status={unknown[0]}: allowed: {', '.join(STATUSES)}")
    return filters
