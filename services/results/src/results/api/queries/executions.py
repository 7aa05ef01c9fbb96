"""Executions: pages, single facts, the matrix, and what an export reads."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from parallax.contracts.messages import (
    Attempt,
    ChatMessage,
    Counts,
    ErrorInfo,
    Output,
    Receipt,
    Usage,
)
from parallax.contracts.model import Strict
from results.api.models import CellExecution, Execution, ExecutionBrief, MatrixCell, MatrixRow
from results.api.queries.reading import EXCERPT_CHARS, Row, row, rows, where

_IN_ORDER: Final = "question_index, model_id, region, sample"

_SCALARS: Final = """
    execution_id, job_id, lane, question_index, question_id, model_id, model, region, sample, status, observed,
    finish_reason, refused, output_chars, prompt_tokens, completion_tokens, attempt_count, duration_s,
    started_at, completed_at
"""
_EXCERPT: Final = f"left(output ->> 'text', {EXCERPT_CHARS}) AS excerpt"
_QUESTION: Final = "jsonb_path_query_first(messages, '$[last] ? (@.role == \"user\").content') #>> '{}' AS question"
_EXPORTED: Final = f"""
    {_SCALARS}, provider_id, recorded_at, {_QUESTION}, output, error, receipt, messages, attempts,
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


class QuestionKey(NamedTuple):
    """Where a page of the matrix ended."""

    question_index: int


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
        error=ErrorInfo.model_validate(error, strict=False) if error else None,
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
            fields[name] = part.model_validate(fields[name], strict=False)
    fields["messages"] = tuple(ChatMessage.model_validate(m, strict=False) for m in fields["messages"])
    fields["attempts"] = tuple(Attempt.model_validate(a, strict=False) for a in fields["attempts"])
    return Execution(**fields)


# --- the matrix ------------------------------------------------------------------------------------------------


async def matrix(
    connection: AsyncConnection, job_id: str, chosen: ExecutionFilter, after: QuestionKey | None, limit: int
) -> list[MatrixRow]:
    """Questions of a job behind an index, each with what every model and region did with it."""
    conditions = ["job_id = :job_id", "question_index > :after"]
    values: dict[str, Any] = {"job_id": job_id, "after": -1 if after is None else after.question_index}
    if chosen.question:
        conditions.append("question_id = ANY(:question)")
        values["question"] = list(chosen.question)
    questions = await rows(
        connection,
        f"""
        SELECT DISTINCT question_index, question_id FROM results.batches {where(conditions)}
         ORDER BY question_index LIMIT :limit
        """,  # noqa: S608 - fixed fragments, bound values
        {**values, "limit": limit},
    )
    indexes = [record["question_index"] for record in questions]
    cells = await _cells(connection, job_id, chosen, indexes)
    texts = await _question_texts(connection, job_id, indexes)
    return [
        MatrixRow(
            question_index=record["question_index"],
            question_id=record["question_id"],
            text=texts.get(record["question_index"]),
            cells=cells[record["question_index"]],
        )
        for record in questions
    ]


_CELL: Final = ("id", "sample", "status", "refused", "output_chars", "duration_s", "excerpt")


async def _cells(
    connection: AsyncConnection, job_id: str, chosen: ExecutionFilter, indexes: Sequence[int]
) -> defaultdict[int, tuple[MatrixCell, ...]]:
    conditions = ["job_id = :job_id", "question_index = ANY(:indexes)"]
    values: dict[str, Any] = {"job_id": job_id, "indexes": list(indexes)}
    for name, column in (("model", "model_id"), ("region", "region"), ("status", "status")):
        if getattr(chosen, name):
            conditions.append(f"{column} = ANY(:{name})")
            values[name] = list(getattr(chosen, name))
    statement = f"""
        SELECT question_index, model_id, region, execution_id, sample, status, refused, output_chars, duration_s,
               {_EXCERPT}
          FROM results.executions {where(conditions)} ORDER BY {_IN_ORDER}
    """  # noqa: S608 - fixed fragments, bound values
    grouped: dict[tuple[int, str, str], list[CellExecution]] = defaultdict(list)
    for index, model_id, region, *rest in await connection.execute(text(statement), values):
        grouped[index, model_id, region].append(CellExecution(**dict(zip(_CELL, rest, strict=True))))
    cells: defaultdict[int, tuple[MatrixCell, ...]] = defaultdict(tuple)
    for (index, model_id, region), executions in grouped.items():
        tally = Counts(**Counter(execution.status.value for execution in executions))
        cell = MatrixCell(model_id=model_id, region=region, counts=tally, executions=tuple(executions))
        cells[index] = (*cells[index], cell)
    return cells


async def _question_texts(connection: AsyncConnection, job_id: str, indexes: Sequence[int]) -> dict[int, str]:
    """The beginning of each question, from the prompt of its first execution that has one."""
    found = await rows(
        connection,
        f"""
        SELECT wanted.question_index, left(asked.question, {EXCERPT_CHARS}) AS question
          FROM unnest(CAST(:indexes AS integer[])) AS wanted (question_index)
         CROSS JOIN LATERAL (
            SELECT {_QUESTION} FROM results.executions
             WHERE job_id = :job_id AND question_index = wanted.question_index AND messages <> '[]'
             ORDER BY {_IN_ORDER} LIMIT 1) AS asked
        """,  # noqa: S608 - fixed fragments, bound values
        {"job_id": job_id, "indexes": list(indexes)},
    )
    return {record["question_index"]: record["question"] for record in found if record["question"] is not None}


# --- retries ---------------------------------------------------------------------------------------------------


class Repeatable(NamedTuple):
    """An execution that a retry may repeat."""

    question_id: str
    model_id: str
    region: str
    sample: int


async def repeatable(
    connection: AsyncConnection, job_id: str, chosen: ExecutionFilter, limit: int
) -> tuple[list[Repeatable], dict[str, str]]:
    """The chosen executions in order, and the whole text of each of their questions that is in the ledger.

    The text is taken from any execution of the question: one that nobody ran has no prompt of its own.
    """
    found = await _ordered(
        connection, "question_index, question_id, model_id, region, sample", job_id, chosen, None, limit
    )
    indexes = sorted({record["question_index"] for record in found})
    texts = await rows(
        connection,
        f"""
        SELECT asked.question_id, asked.question
          FROM unnest(CAST(:indexes AS integer[])) AS wanted (question_index)
         CROSS JOIN LATERAL (
            SELECT question_id, {_QUESTION} FROM results.executions
             WHERE job_id = :job_id AND question_index = wanted.question_index AND messages <> '[]'
             ORDER BY {_IN_ORDER} LIMIT 1) AS asked
         ORDER BY wanted.question_index
        """,  # noqa: S608 - fixed fragments, bound values
        {"job_id": job_id, "indexes": indexes},
    )
    cells = [Repeatable(r["question_id"], r["model_id"], r["region"], r["sample"]) for r in found]
    return cells, {r["question_id"]: r["question"] for r in texts if r["question"] is not None}
