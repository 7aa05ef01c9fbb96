"""``compare`` and ``judge``: what differs between answers, and what a person says an answer is."""

import asyncio
import sys
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, Final
from uuid import UUID

import typer

from parallax.contracts.comparison import Across, Comparison, ComparisonProgress, Verdict
from parallax.contracts.rates import Outcome
from parallax.errors import InvalidInputError
from parallax_cli.commands.results import newest_job
from parallax_cli.comparisons import comparison_lines
from parallax_cli.connect import Need, Target, connected
from parallax_cli.console import print_json, stderr, stdout
from parallax_cli.exits import ExitCode, guarded
from parallax_cli.options import Api, AsJson, JobId, Key, LatestJobId
from parallax_cli.text import printable
from parallax_cli.view import simulated_regions, simulation_note

AS_TOLD: Final = "rules"
"""Gives an answer back to the rules."""


class Format(StrEnum):
    """How a comparison is written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


@guarded
def compare(
    job_id: LatestJobId = None,
    *,
    across: Annotated[
        Across | None, typer.Option(help="What the sides differ in; regions, or jobs with --with.", show_default=False)
    ] = None,
    with_job: Annotated[
        str | None, typer.Option("--with", help="Compare the same cells and prompts in this job too.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Only pairs with this region (or model); 'all' for every pair.")
    ] = None,
    question: Annotated[list[str] | None, typer.Option(help="Only this question. Repeat.")] = None,
    output_format: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.TABLE,
    fail_on_difference: Annotated[
        bool, typer.Option("--fail-on-difference", help="Exit with code 6 when a pair differs; controls do not count.")
    ] = False,
    as_json: AsJson = False,
    api: Api = None,
    key: Key = None,
) -> None:
    """Tell which answers differ between regions, models or times, and how that compares with mere repeats."""
    target = Target(url=api, key=key)

    chosen: dict[str, Any] = {
        "across": across, "with_job_id": with_job, "against": against, "question": question or (), "on_progress": _tell,
    }  # fmt: skip

    async def read() -> tuple[Comparison, bytes, str | None]:
        async with connected(target, Need.READ) as client:
            job = await newest_job(client, job_id)
            found = await client.compare(job, **chosen)
            table = await client.compare_csv(job, **chosen) if output_format is Format.CSV else b""
            return found, table, simulation_note(await client.job(job), simulated_regions(await client.catalog()))

    found, table, note = asyncio.run(read())
    if as_json or output_format is Format.JSON:
        print_json(found)
    elif output_format is Format.CSV:
        sys.stdout.write(printable(table.decode().replace("\r\n", "\n")))
    else:
        _print([*comparison_lines(found), *([note] if note else [])])
    if fail_on_difference and any(pair.verdict is Verdict.DIFFERS for pair in found.pairs):
        raise typer.Exit(ExitCode.DIFFERENCE)


def _print(lines: Iterable[str]) -> None:
    console = stdout()
    for line in lines:
        console.print(line, soft_wrap=True)


def _tell(progress: ComparisonProgress) -> None:
    stderr().print(f"comparing: {progress.questions_done} of {progress.questions} questions")


@guarded
def judge(
    job_id: JobId,
    execution_id: Annotated[UUID, typer.Argument(help="Id of the execution.", show_default=False)],
    outcome: Annotated[
        str, typer.Argument(help=f"{', '.join(Outcome)}; or {AS_TOLD}, to leave it to the rules.", show_default=False)
    ],
    *,
    note: Annotated[str | None, typer.Option(help="Why; kept with the decision.")] = None,
    as_json: AsJson = False,
    api: Api = None,
    key: Key = None,
) -> None:
    """Decide what one answer is (a refusal, or none), over the rules; kept with the key's id and the time."""
    if outcome not in {AS_TOLD, *Outcome}:
        raise InvalidInputError(f"{outcome!r} is no outcome; allowed: {', '.join(Outcome)}, {AS_TOLD}")
    chosen = None if outcome == AS_TOLD else Outcome(outcome)

    async def decide() -> None:
        async with connected(Target(url=api, key=key), Need.CHANGE) as client:
            decided = await client.judge(job_id, execution_id, chosen, note=note)
        if as_json:
            print_json(decided)
        else:
            now = decided.outcome or f"as the rules say: {decided.by_rules}"
            stdout().print(f"{execution_id}: {now} (the rules say {decided.by_rules})", soft_wrap=True)

    asyncio.run(decide())
