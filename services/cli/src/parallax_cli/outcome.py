"""What is shown when a watched job has ended, and the exit code that goes with it."""

from collections.abc import Mapping
from typing import Final

from rich.console import Console

from parallax.client import ParallaxClient
from parallax.contracts.answers import Job, JobStatus
from parallax.contracts.outcomes import JobOutcome
from parallax_cli.exits import ExitCode, exit_code_of
from parallax_cli.tables import answers_table
from parallax_cli.text import one_line, printable
from parallax_cli.view import duration, simulation_note

MAX_TABLE_QUESTIONS: Final = 20
"""Questions in the table at the end of a run; ``parallax matrix`` shows as many as asked for."""


def job_exit_code(job: Job) -> ExitCode:
    """The exit code of a command that waited for this job."""
    match job.status:
        case JobStatus.COMPLETED:
            return exit_code_of(JobOutcome.COMPLETED)
        case JobStatus.FAILED:
            return exit_code_of(JobOutcome.FAILED)
        case JobStatus.CANCELLED:
            return exit_code_of(JobOutcome.CANCELLED)
        case JobStatus.REJECTED:
            return ExitCode.INVALID_INPUT
        case _:
            return ExitCode.DONE


async def show_outcome(
    client: ParallaxClient, job: Job, simulated: Mapping[str, bool], console: Console, *, where: str
) -> None:
    """Question x model x region, how the job ended, and where its results are."""
    if job.counts.total:
        matrix, rows = await client.matrix_rows(job.id, limit=MAX_TABLE_QUESTIONS)
        console.print(answers_table(matrix, rows))
        if job.questions is not None and job.questions > len(rows):
            console.print(f"(the first {len(rows)} of {job.questions} questions; parallax matrix {job.id} shows more)")
    for line in summary_lines(job, simulated, where):
        console.print(line, soft_wrap=True)


def summary_lines(job: Job, simulated: Mapping[str, bool], where: str) -> list[str]:
    """The end of a job in a few lines."""
    counts = job.counts
    lines = [
        f"job {job.id}: {job.status.value}"
        + (f" ({one_line(job.reason.message, 200)})" if job.reason is not None else ""),
        f"{counts.completed} completed, {counts.failed} failed, {counts.timed_out} timed out, {counts.cancelled} "
        f"cancelled of {job.executions if job.executions is not None else '?'} executions"
        + (f", {job.not_started} not started" if job.not_started else "")
        + f" in {duration(job.timings.ran_s)}; {job.tokens.prompt + job.tokens.completion} tokens",
    ]
    lines += [f"  {printable(p.pointer) or '/'}: {one_line(p.message, 300)}" for p in job.problems]
    note = simulation_note(job, simulated)
    if note is not None:
        lines.append(note)
    if counts.total:
        lines.append(f"Stored in {where}. Read them with: parallax results {job.id} --format table|csv|jsonl")
    return lines
