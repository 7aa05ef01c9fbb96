"""Question x model x region of one job, or of a job together with those that repeat parts of it."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

from pydantic import TypeAdapter
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from parallax.contracts.answers import MatrixRow
from results.api.queries import questions
from results.api.queries.executions import ExecutionFilter
from results.api.queries.reading import EXCERPT_CHARS, Row, rows, where


class QuestionKey(NamedTuple):
    """Where a page of the matrix ended."""

    question_index: int


async def page(
    connection: AsyncConnection, jobs: Sequence[str], chosen: ExecutionFilter, after: QuestionKey | None, limit: int
) -> list[MatrixRow]:
    """Questions of ``jobs[0]`` behind an index, each with what every model and region did with it in all the jobs."""
    conditions = ["job_id = :job_id", "question_index > :after"]
    values: dict[str, Any] = {"job_id": jobs[0], "after": -1 if after is None else after.question_index}
    if chosen.question:
        conditions.append("question_id = ANY(:question)")
        values["question"] = list(chosen.question)
    wanted = await rows(
        connection,
        f"""
        SELECT DISTINCT ON (question_index) question_index, question_id,
               left(question ->> 'text', {EXCERPT_CHARS}) AS text
          FROM results.batches {where(conditions)}
         ORDER BY question_index, question IS NULL, lane LIMIT :limit
        """,  # noqa: S608 - fixed fragments, bound values
        {**values, "limit": limit},
    )
    cells = await _cells(connection, jobs, chosen, wanted)
    untold = [record["question_index"] for record in wanted if record["text"] is None]
    texts = await questions.excerpts(connection, jobs[0], untold) if untold else {}
    # One validation of everything: a matrix has hundreds of small parts, and each by itself costs ten times as much.
    return _ROWS.validate_python(
        [
            {
                **record,
                "text": record["text"] or texts.get(record["question_index"]),
                "cells": cells[record["question_index"]],
            }
            for record in wanted
        ]
    )


_ROWS: Final = TypeAdapter(list[MatrixRow])
_CELL: Final = ("id", "job_id", "sample", "status", "refused", "output_chars", "duration_s", "excerpt")
_COLUMNS: Final = f"""
    e.model_id, e.region, e.execution_id, e.job_id, e.sample, e.status, e.refused, e.output_chars, e.duration_s,
    left(e.output ->> 'text', {EXCERPT_CHARS}) AS excerpt
"""
_IN_ORDER: Final = "question_index, model_id, region, sample"
_WHERE: Final = (("model", "model_id"), ("region", "region"))


async def _cells(
    connection: AsyncConnection, jobs: Sequence[str], chosen: ExecutionFilter, wanted: Sequence[Row]
) -> defaultdict[int, list[dict[str, Any]]]:
    """The fields of the cells of each question, by its index."""
    statement = _of_one(chosen) if len(jobs) == 1 else _of_all(chosen)
    values = {
        "job_id": jobs[0],
        "jobs": list(jobs),
        "indexes": [record["question_index"] for record in wanted],
        "ids": [record["question_id"] for record in wanted],
        **{name: list(values) for name, values in chosen._asdict().items()},
    }
    cells: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    found = (await connection.execute(text(statement), values)).all()
    for (index, model_id, region), executions in groupby(found, key=itemgetter(0, 1, 2)):
        listed = [dict(zip(_CELL, execution[3:], strict=True)) for execution in executions]
        tally = Counter(execution["status"] for execution in listed)
        cells[index].append({"model_id": model_id, "region": region, "counts": tally, "executions": listed})
    return cells


def _of_one(chosen: ExecutionFilter) -> str:
    conditions = ["e.job_id = :job_id", "e.question_index = ANY(:indexes)"]
    conditions += [
        f"e.{column} = ANY(:{name})" for name, column in (*_WHERE, ("status", "status")) if getattr(chosen, name)
    ]
    return f"""
        SELECT e.question_index, {_COLUMNS} FROM results.executions AS e {where(conditions)} ORDER BY {_IN_ORDER}
    """  # noqa: S608 - fixed fragments, bound values


def _of_all(chosen: ExecutionFilter) -> str:
    """One execution of each cell: the newest that is completed, or else the newest.

    A question has an index of its own in each job, so it is found by its id. A status is asked of what is shown:
    what failed at first and was answered later is not among the failures.
    """
    conditions = ["b.job_id = ANY(:jobs)"]
    conditions += [f"e.{column} = ANY(:{name})" for name, column in _WHERE if getattr(chosen, name)]
    shown = where(["e.status = ANY(:status)"]) if chosen.status else ""
    return f"""
        SELECT newest.question_index, {_COLUMNS}
          FROM (
            SELECT DISTINCT ON (wanted.question_index, e.model_id, e.region, e.sample)
                   wanted.question_index, e.execution_id
              FROM unnest(CAST(:indexes AS integer[]), CAST(:ids AS text[])) AS wanted (question_index, question_id)
              JOIN results.batches AS b ON b.question_id = wanted.question_id
              JOIN results.executions AS e
                ON e.job_id = b.job_id AND e.question_index = b.question_index AND e.lane = b.lane
             {where(conditions)}
             ORDER BY wanted.question_index, e.model_id, e.region, e.sample,
                      (e.status = 'completed') DESC, e.completed_at DESC, e.execution_id
          ) AS newest
          JOIN results.executions AS e USING (execution_id)
         {shown} ORDER BY {_IN_ORDER}
    """  # noqa: S608 - fixed fragments, bound values
