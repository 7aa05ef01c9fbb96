"""Results in memory: rows, or a data frame of whichever library is installed."""

import json
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Results:
    """Executions of a job, each as plain JSON data in the form of the export."""

    rows: list[dict[str, Any]]

    @classmethod
    def from_jsonl(cls, document: bytes) -> Self:
        """The rows of an export."""
        return cls([json.loads(line) for line in document.splitlines() if line.strip()])

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with one row per execution, nested fields as columns like ``output.text``.

        Raises:
            ImportError: pandas is not installed.
        """
        return _library("pandas").json_normalize(self.rows)

    def to_polars(self) -> Any:
        """A ``polars.DataFrame`` with one row per execution; nested fields stay structs.

        Raises:
            ImportError: polars is not installed.
        """
        return _library("polars").DataFrame(self.rows, infer_schema_length=None)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ImportError(
            f"to_{name}() needs the package {name}, which is not installed: pip install {name}"
        ) from error
