"""``results`` and ``matrix``: what the models said."""

import asyncio
import codecs
import os
import sys
from collections.abc import AsyncIterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from parallax.client import ParallaxClient
from parallax.contracts.answers import ExecutionBrief, Matrix, MatrixRow
from parallax.errors import InvalidInputError
from parallax_cli.connect import Need, Target, connected
from parallax_cli.console import print_json, stderr, stdout
from parallax_cli.exits import guarded
from parallax_cli.options import Api, AsJson, Key, LatestJobId, Where, parse_where
from parallax_cli.tables import answers_table, executions_table
from parallax_cli.text import printable
from parallax_cli.view import simulated_regions, simulation_note


class Format(StrEnum):
    """How results are written."""

    TABLE = "table"
    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


@guarded
def results(
    job_id: LatestJobId = None,
    *,
    output_format: Annotated[Format, typer.Option("--format", help="How to write them.")] = Format.TABLE,
    where: Where = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows of the table; the other formats hold everything.")] = 200,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to a file instead of stdout.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format jsonl.")] = False,
    api: Api = None,
    key: Key = None,
) -> None:
    """Show or export the executions of a job: every answer, with attempts and receipt in jsonl."""
    filters = parse_where(where)
    chosen = Format.JSONL if as_json else output_format
    if chosen is Format.PARQUET and output is None and sys.stdout.isatty():
        raise InvalidInputError("--format parquet writes bytes: give --output FILE")
    asyncio.run(_results(Target(url=api, key=key), job_id, chosen, filters, limit, output))


async def _results(  # noqa: PLR0917 - the command's own options
    target: Target, job_id: str | None, chosen: Format, filters: dict[str, list[str]], limit: int, output: Path | None
) -> None:
    async with connected(target, Need.READ) as client:
        job_id = await newest_job(client, job_id)
        if chosen is not Format.TABLE:
            await _export(client, job_id, chosen.value, filters, output)
            return
        if output is not None:
            raise InvalidInputError("--output goes with --format csv, jsonl or parquet")
        rows: list[ExecutionBrief] = [
            execution async for execution in client.executions(job_id, **filters, limit=limit + 1)
        ]
        note = simulation_note(await client.job(job_id), simulated_regions(await client.catalog()))
    console = stdout()
    console.print(executions_table(rows[:limit]))
    if len(rows) > limit:
        console.print(f"(the first {limit}; --limit shows more, --format csv or jsonl everything)")
    if note is not None:
        console.print(note, soft_wrap=True)


async def _export(
    client: ParallaxClient, job_id: str, chosen: str, filters: dict[str, list[str]], output: Path | None
) -> None:
    await client.job(job_id)  # an unknown job must not leave an empty file behind
    parts = client.export(job_id, chosen, **filters)
    if output is None:
        await _to_stdout(parts)
        return
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            async for part in parts:
                file.write(part)
        partial.replace(output)
    except OSError as error:
        raise InvalidInputError(f"{output}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    stderr().print(f"wrote {output}", soft_wrap=True)


async def _to_stdout(parts: AsyncIterator[bytes]) -> None:
    """Byte for byte into a file or pipe; to a terminal with control characters shown as escapes."""
    if not sys.stdout.isatty():
        async for part in parts:
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        return
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    async for part in parts:
        sys.stdout.write(printable(decoder.decode(part).replace("\r\n", "\n")))


@guarded
def matrix(
    job_id: LatestJobId = None,
    *,
    limit: Annotated[int, typer.Option(min=1, max=20_000, help="Questions shown.")] = 50,
    merged: Annotated[
        bool, typer.Option("--merged", help="With the newest answers of the jobs that retried it.")
    ] = False,
    as_json: AsJson = False,
    api: Api = None,
    key: Key = None,
) -> None:
    """Show question x model x region: the answers side by side."""
    target = Target(url=api, key=key)

    async def read() -> tuple[Matrix, list[MatrixRow], str | None]:
        async with connected(target, Need.READ) as client:
            chosen = await newest_job(client, job_id)
            first, rows = await client.matrix_rows(chosen, limit=limit, merged=merged)
            return first, rows, simulation_note(await client.job(chosen), simulated_regions(await client.catalog()))

    first, rows, note = asyncio.run(read())
    if as_json:
        print_json(first.model_copy(update={"rows": tuple(rows)}))
        return
    stdout().print(answers_table(first, rows))
    if note is not None:
        stdout().print(note, soft_wrap=True)


async def newest_job(client: ParallaxClient, job_id: str | None) -> str:
    """The given id, or that of the newest job.

    Raises:
        InvalidInputError: There is no job at all.
    """
    if job_id is not None:
        return job_id
    async for job in client.jobs(limit=1):
        return job.id
    raise InvalidInputError("there are no jobs yet; `parallax demo` runs one")
