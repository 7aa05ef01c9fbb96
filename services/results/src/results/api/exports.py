"""Files of a whole job, written while they are read: memory does not grow with the job.

Rows are read in keyset pages rather than through one long-lived cursor, so that a slow reader holds no database
connection and no transaction.
"""

import csv
import importlib.util
import io
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.responses import StreamingResponse

from results.api.problems import ApiError, Kind
from results.api.queries.executions import ExecutionFilter, ExecutionKey, export_page, key_of
from results.api.queries.reading import Row, reading

FIRST_PAGE_ROWS: Final = 10
"""Read to learn how large the rows are; each may have megabytes."""


class PageBound(NamedTuple):
    """How many rows a page has at most."""

    rows: int
    size_bytes: int
    """As they are stored; in memory they are a few times larger."""


LINES: Final = PageBound(rows=200, size_bytes=64 * 1024)
"""Pages of 1 MB are a tenth faster and need 6 MB more."""
ROW_GROUP: Final = PageBound(rows=2_000, size_bytes=4 * 1024 * 1024)
"""A page is a row group of Parquet, which is read and compressed as one."""

COLUMNS: Final = (
    "execution_id", "job_id", "lane", "question_index", "question_id", "question", "model_id", "model", "region",
    "sample", "status", "observed", "finish_reason", "refused", "output", "refusal", "error_class", "error_code",
    "error_message", "prompt_tokens", "completion_tokens", "attempt_count", "duration_s", "started_at",
    "completed_at", "recorded_at", "provider_id", "model_reported", "region_observed", "prompt_sha256",
    "output_sha256",
)  # fmt: skip
"""The flat columns of CSV and Parquet; JSON Lines carry the documents as well."""

_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")
"""What makes a spreadsheet run a cell (OWASP, CSV injection)."""


class Format(StrEnum):
    """What a job can be exported as."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"

    @property
    def media_type(self) -> str:
        """The media type of the file."""
        match self:
            case Format.CSV:
                return "text/csv; charset=utf-8"
            case Format.JSONL:
                return "application/jsonl"
            case Format.PARQUET:
                return "application/vnd.apache.parquet"


def export(engine: AsyncEngine, job_id: str, chosen: ExecutionFilter, file_format: Format) -> StreamingResponse:
    """The response that streams the chosen executions.

    Raises:
        ApiError: The format needs a library that is not installed here.
    """
    pages = _pages(engine, job_id, chosen, ROW_GROUP if file_format is Format.PARQUET else LINES)
    body: AsyncIterator[bytes]
    match file_format:
        case Format.CSV:
            body = _written(pages, _csv_lines, head=_csv_text([COLUMNS]))
        case Format.JSONL:
            body = _written(pages, _json_lines)
        case Format.PARQUET:
            if importlib.util.find_spec("pyarrow") is None:
                raise ApiError(Kind.FORMAT_UNAVAILABLE, "parquet needs the package pyarrow beside this service")
            body = _parquet(pages)
    disposition = f'attachment; filename="{job_id}.{file_format}"'
    return StreamingResponse(body, media_type=file_format.media_type, headers={"Content-Disposition": disposition})


async def _pages(
    engine: AsyncEngine, job_id: str, chosen: ExecutionFilter, bound: PageBound
) -> AsyncIterator[Sequence[Row]]:
    after: ExecutionKey | None = None
    limit = FIRST_PAGE_ROWS
    while True:
        async with reading(engine) as connection:
            found = await export_page(connection, job_id, chosen, after, limit)
        if found:
            yield found
            after = key_of(found[-1])
        if len(found) < limit:
            return
        mean_bytes = sum(record["stored_bytes"] or 0 for record in found) / len(found)
        limit = max(1, min(bound.rows, int(bound.size_bytes / max(1.0, mean_bytes))))


async def _written(
    pages: AsyncIterator[Sequence[Row]], write: Callable[[Sequence[Row]], str], *, head: str = ""
) -> AsyncIterator[bytes]:
    if head:
        yield head.encode()
    async for page in pages:
        yield write(page).encode()


def flat(record: Row) -> dict[str, Any]:
    """The flat columns of an execution."""
    output: Mapping[str, Any] = record["output"] or {}
    error: Mapping[str, Any] = record["error"] or {}
    receipt: Mapping[str, Any] = record["receipt"] or {}
    derived = {
        "output": output.get("text"),
        "refusal": output.get("refusal"),
        "error_class": error.get("error_class"),
        "error_code": error.get("code"),
        "error_message": error.get("message"),
        **{name: receipt.get(name) for name in ("model_reported", "region_observed", "prompt_sha256", "output_sha256")},
    }
    return {name: derived[name] if name in derived else record[name] for name in COLUMNS}


def _json_lines(page: Sequence[Row]) -> str:
    return "".join(json.dumps(_document(record), ensure_ascii=False, default=_plain) + "\n" for record in page)


def _document(record: Row) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "stored_bytes"}


def _plain(value: object) -> str:
    isoformat = getattr(value, "isoformat", None)
    return isoformat() if isoformat is not None else str(value)


def _csv_lines(page: Sequence[Row]) -> str:
    return _csv_text([cell(value) for value in flat(record).values()] for record in page)


def _csv_text(lines: Iterable[Iterable[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerows(lines)
    return buffer.getvalue()


def cell(value: object) -> object:
    """A value as it stands in CSV: text that a spreadsheet would run as a formula gets an apostrophe in front."""
    if isinstance(value, str):
        return f"'{value}" if value.lstrip(" \n").startswith(_FORMULA_STARTS) else value
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if value is None or isinstance(value, int | float) else _plain(value)


async def _parquet(pages: AsyncIterator[Sequence[Row]]) -> AsyncIterator[bytes]:
    """One row group per page, with a schema that does not depend on the rows."""
    import pyarrow as pa  # noqa: PLC0415 - optional: only this format needs it
    from pyarrow import parquet  # noqa: PLC0415

    kinds = {
        **dict.fromkeys(("question_index", "sample", "attempt_count"), pa.int32()),
        **dict.fromkeys(("prompt_tokens", "completion_tokens"), pa.int64()),
        **dict.fromkeys(("started_at", "completed_at", "recorded_at"), pa.timestamp("us", tz="UTC")),
        **dict.fromkeys(("observed", "refused"), pa.bool_()),
        "duration_s": pa.float64(),
    }
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
    sink = _Sink()
    writer = parquet.ParquetWriter(sink, schema, compression="zstd")
    async for page in pages:
        records = [{**flat(record), "execution_id": str(record["execution_id"])} for record in page]
        writer.write_table(pa.Table.from_pylist(records, schema=schema))
        yield sink.taken()
    writer.close()
    yield sink.taken()


class _Sink(io.RawIOBase):
    """A file that only grows, from which what was written is taken again and again."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting = bytearray()
        self._written = 0

    def writable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Everything that was ever written: Parquet's footer names places in the whole file."""
        return self._written

    def write(self, data: Any) -> int:
        """Keep the bytes until they are taken."""
        part = bytes(data)
        self._waiting += part
        self._written += len(part)
        return len(part)

    def taken(self) -> bytes:
        """What was written since the last call."""
        part = bytes(self._waiting)
        self._waiting.clear()
        return part
