"""What was asked: as the opening of a batch told it, or else as the prompts in the ledger have it.

An opening may be late or lost, and an execution that nobody ran has no prompt; each stands in for the other. A
question that is known from prompts alone has its text, but neither tags nor metadata.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from results.api.queries.reading import EXCERPT_CHARS, rows

IN_PROMPT: Final = "jsonb_path_query_first(messages, '$[last] ? (@.role == \"user\").content') #>> '{}'"
"""The question's text in an execution's prompt."""

_ASKED: Final = f"""
    SELECT wanted.question_index, coalesce(told.question, called.question) AS question
      FROM unnest(CAST(:indexes AS integer[])) AS wanted (question_index)
      LEFT JOIN LATERAL (
        SELECT question FROM results.batches
         WHERE job_id = :job_id AND question_index = wanted.question_index AND question IS NOT NULL
         ORDER BY lane LIMIT 1) AS told ON true
      LEFT JOIN LATERAL (
        SELECT jsonb_build_object('id', question_id, 'text', {IN_PROMPT}) AS question FROM results.executions
         WHERE told.question IS NULL
           AND job_id = :job_id AND question_index = wanted.question_index AND messages <> '[]'
         ORDER BY model_id, region, sample LIMIT 1) AS called ON true
"""  # noqa: S608 - made of constants


async def excerpts(connection: AsyncConnection, job_id: str, indexes: Sequence[int]) -> dict[int, str]:
    """The beginning of each question whose text is known, by index."""
    statement = f"""
        SELECT question_index, left(question ->> 'text', {EXCERPT_CHARS}) AS text
          FROM ({_ASKED}) AS asked WHERE question ->> 'text' IS NOT NULL
    """  # noqa: S608 - made of constants
    found = await rows(connection, statement, {"job_id": job_id, "indexes": list(indexes)})
    return {record["question_index"]: record["text"] for record in found}


async def whole(connection: AsyncConnection, job_id: str, indexes: Sequence[int]) -> list[dict[str, Any]]:
    """The documents of those questions whose text is known, in order."""
    statement = f"""
        SELECT question FROM ({_ASKED}) AS asked WHERE question ->> 'text' IS NOT NULL ORDER BY question_index
    """  # noqa: S608 - made of constants
    found = await rows(connection, statement, {"job_id": job_id, "indexes": list(indexes)})
    return [record["question"] for record in found]
