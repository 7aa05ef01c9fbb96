"""Executions: pages, single facts, and what an export or a retry reads."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from parallax.contracts.answers import Execution, ExecutionBrief
from parallax.contracts.model import Strict, read_document
from parallax.contracts.outcomes import Attempt, ChatMessage, ErrorInfo, Output, Receipt, Usage
from results.api.queries.questions import IN_PROMPT
from results.api.queries.reading import EXCERPT_CHARS, Row, row, rows, where

_IN_ORDER: Final = "question_index, model_id, region, sample"

_SCALARS: Final = """
    execution_id, job_id, lane, question_index, question_id, model_id, model, region, sample, status, observed,
    finish_reason, refused, output_chars, prompt_tokens, completion_tokens, attempt_count, duration_s,
    started_at, completed_at
"""
_EXCERPT: Final = f"left(output ->> 'text', {EXCERPT_CHARS}) AS excerpt"
_EXPORTED: Final = f"""
    {_SCALARS}, provider_id, recorded_at, {IN_PROMPT} AS question, output, error, receipt, messages, attempts,
    pg_column_size(output) + pg_column_size(messages) + pg_column_size(attempts) AS stored_bytes
"""


class ExecutionFilter(NamedTuple):
    """Which executions of a job are meant. An empty tuple means all."""

    question: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    region: tuple[str, ...] = ()
    status: tuple[str, ...] = ()


class ExecutionKey(NamedTuple):
    """Where a page of executions ended."""

    question_index: int
    model_id: str
    region: str
    sample: int


def key_of(record: Row | ExecutionBrief) -> ExecutionKey:
    """The place of an execution in the order of its job."""
    if isinstance(record, ExecutionBrief):
        return ExecutionKey(record.question_index, record.model_id, record.region, record.sample)
    return ExecutionKey(record["question_index"], record["model_id"], record["region"], record["sample"])


async def page(
    connection: AsyncConnection, job_id: str, chosen: ExecutionFilter, after: ExecutionKey | None, limit: int
) -> list[ExecutionBrief]:
    """Executions of a job in order, behind ``after``."""
    found = await _ordered(connection, f"{_SCALARS}, error, {_EXCERPT}", job_id, chosen, after, limit)
    return [_brief(record) for record in found]


async def export_page(
    connection: AsyncConnection, job_id: str, chosen: ExecutionFilter, after: ExecutionKey | None, limit: int
) -> Sequence[Row]:
    """Whole executions of a job in order, behind ``after``; ``stored_bytes`` says about how large each is."""
    return await _ordered(connection, _EXPORTED, job_id, chosen, after, limit)


async def _ordered(  # noqa: PLR0917 - as its callers, plus the columns
    connection: AsyncConnection,
    columns: str,
    job_id: str,
    chosen: ExecutionFilter,
    after: ExecutionKey | None,
    limit: int,
) -> Sequence[Row]:
    conditions = ["job_id = :job_id"]
    values: dict[str, Any] = {"job_id": job_id, "limit": limit}
    if chosen.question:
        # The index of a question is in ``batches``; with it the ordered index leads to the rows.
        indexes = "SELECT question_index FROM results.batches WHERE job_id = :job_id AND question_id = ANY(:question)"
        conditions.append(f"question_index = ANY(ARRAY({indexes}))")
        conditions.append("question_id = ANY(:question)")
    for name, column in (("model", "model_id"), ("region", "region")):
        if getattr(chosen, name):
            conditions.append(f"{column} = ANY(:{name})")
    values |= {name: list(getattr(chosen, name)) for name in ("question", "model", "region") if getattr(chosen, name)}
    if after is not None:
        conditions.append(f"({_IN_ORDER}) > (:after_index, :after_model, :after_region, :after_sample)")
        values |= dict(zip(("after_index", "after_model", "after_region", "after_sample"), after, strict=True))
    # Each status has an ordered index of its own: a page of the few failures of a large job reads only them.
    values |= {f"status_{number}": status for number, status in enumerate(chosen.status)}
    per_status = [[f"status = :status_{number}"] for number in range(len(chosen.status))] or [[]]
    ids = " UNION ALL ".join(
        f"(SELECT execution_id, {_IN_ORDER} FROM results.executions {where([*conditions, *extra])}"  # noqa: S608
        f" ORDER BY {_IN_ORDER} LIMIT :limit)"
        for extra in per_status
    )
    statement = f"""
        SELECT {columns} FROM results.executions
         WHERE execution_id IN (SELECT execution_id FROM ({ids}) AS found ORDER BY {_IN_ORDER} LIMIT :limit)
         ORDER BY {_IN_ORDER}
    """  # noqa: S608 - fixed fragments, bound values
    if len(per_status) == 1:
        statement = f"""
            SELECT {columns} FROM results.executions {where([*conditions, *per_status[0]])}
             ORDER BY {_IN_ORDER} LIMIT :limit
        """  # noqa: S608 - fixed fragments, bound values
    return await rows(connection, statement, values)


def _brief(record: Row) -> ExecutionBrief:
    fields = dict(record)
    error = fields.pop("error")
    return ExecutionBrief(
        id=fields.pop("execution_id"),
        error=read_document(ErrorInfo, error) if error else None,
        **fields,
    )


_WHOLE: Final = """
SELECT execution_id AS id, job_id, lane, question_index, question_id, model_id, model, region, sample, status,
       observed, provider_id, messages, output, finish_reason, usage, receipt, error, attempts,
       started_at, completed_at, duration_s, recorded_at
  FROM results.executions
"""


async def one(connection: AsyncConnection, job_id: str, execution_id: UUID) -> Execution | None:
    """The whole fact of an execution of a job."""
    statement = f"{_WHOLE} WHERE execution_id = :execution_id AND job_id = :job_id"
    found = await row(connection, statement, {"execution_id": execution_id, "job_id": job_id})
    return None if found is None else _whole(found)


async def of_question(connection: AsyncConnection, job_id: str, index: int, limit: int) -> list[Execution]:
    """The whole facts of a question, in order."""
    statement = f"{_WHOLE} WHERE job_id = :job_id AND question_index = :index ORDER BY {_IN_ORDER} LIMIT :limit"
    values = {"job_id": job_id, "index": index, "limit": limit}
    return [_whole(record) for record in await rows(connection, statement, values)]


def _whole(record: Row) -> Execution:
    fields = dict(record)
    parts: dict[str, type[Strict]] = {"output": Output, "usage": Usage, "receipt": Receipt, "error": ErrorInfo}
    for name, part in parts.items():
        if fields[name] is not None:
            fields[name] = read_document(part, fields[name])
    fields["messages"] = tuple(read_document(ChatMessage, m) for m in fields["messages"])
    fields["attempts"] = tuple(read_document(Attempt, a) for a in fields["attempts"])
    return Execution(**fields)


# --- retries ---------------------------------------------------------------------------------------------------


class Repeatable(NamedTuple):
    """An execution that a retry may repeat."""

    question_index: int
    question_id: str
    model_id: str
    region: str
    sample: int


async def repeatable(
    connection: AsyncConnection, job_id: str, chosen: ExecutionFilter, after: ExecutionKey | None, limit: int
) -> list[Repeatable]:
    """The chosen executions in order, behind ``after``."""
    found = await _ordered(connection, ", ".join(Repeatable._fields), job_id, chosen, after, limit)
    return [Repeatable(**record) for record in found]
