"""Jobs, answers and regions as tables for people. Text from models is made harmless and cut."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from parallax.contracts.answers import CellExecution, ExecutionBrief, JobBrief, Matrix, MatrixCell, MatrixRow, Summary
from parallax.contracts.installation import Regions
from parallax.contracts.rates import Rate
from parallax_cli.text import one_line
from parallax_cli.view import STATUS_STYLES, duration

if TYPE_CHECKING:
    from parallax.bus.letters import DeadLetter
    from parallax_cli.warming import Warmed
    from results.api.keys import Key

ANSWER_CHARS = 110
"""Characters of an answer in a cell; the whole text is in the results."""
QUESTION_CHARS = 120


def status_text(status: str) -> Text:
    """A status in its colour."""
    return Text(status, style=STATUS_STYLES.get(status, ""))


def jobs_table(jobs: Iterable[JobBrief]) -> Table:
    """Jobs, one per row."""
    table = _table("job", "name", "status", "executions", "completed", "created", "took")
    for job in jobs:
        took = (job.finished_at - job.started_at).total_seconds() if job.finished_at and job.started_at else None
        table.add_row(
            Text(one_line(job.id)),
            Text(one_line(job.name or "-", 40)),
            status_text(job.status.value),
            f"{job.counts.total}/{job.executions if job.executions is not None else '?'}",
            str(job.counts.completed),
            job.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
            duration(took),
        )
    return table


def answers_table(matrix: Matrix, rows: Sequence[MatrixRow]) -> Table:
    """Question x model x region: one row per question and model, one column per region."""
    table = _table("question", "model", *matrix.regions, lines=True)
    for row in rows:
        cells = {(cell.model_id, cell.region): cell for cell in row.cells}
        for number, model in enumerate(matrix.models):
            question = Text(one_line(row.question_id), style="bold") if number == 0 else Text()
            if number == 0 and row.text:
                question.append("\n" + one_line(row.text, QUESTION_CHARS), style="not bold")
            answers = [_answer(matrix.job_id, cells.get((model, region))) for region in matrix.regions]
            table.add_row(question, Text(one_line(model)), *answers)
    return table


def _answer(job_id: str, cell: MatrixCell | None) -> Text:
    if cell is None or not cell.executions:
        return Text("-", style="dim")
    first = cell.executions[0]
    text = _outcome(first)
    if first.job_id != job_id:
        text.append(f"  (from {one_line(first.job_id)})", style="dim")
    if len(cell.executions) > 1:
        text.append(f"  (+{len(cell.executions) - 1} more samples)", style="dim")
    return text


def _outcome(execution: CellExecution) -> Text:
    if execution.status.value != "completed":
        return status_text(execution.status.value)
    text = Text(one_line(execution.excerpt or "", ANSWER_CHARS))
    if execution.refused:
        text.append("  [refused]", style="yellow")
    return text if text.plain else Text("[empty answer]", style="dim")


def executions_table(executions: Iterable[ExecutionBrief]) -> Table:
    """Executions, one per row."""
    table = _table("question", "model", "region", "sample", "status", "took", "tokens", "answer")
    for execution in executions:
        said = execution.excerpt or ""
        if execution.error is not None:
            said = f"{execution.error.error_class}: {execution.error.message}"
        table.add_row(
            Text(one_line(execution.question_id)),
            Text(one_line(execution.model_id)),
            Text(one_line(execution.region)),
            str(execution.sample),
            status_text(execution.status.value),
            duration(execution.duration_s),
            str(execution.completion_tokens) if execution.completion_tokens is not None else "-",
            Text(one_line(said, ANSWER_CHARS)),
        )
    return table


def summary_table(summary: Summary) -> Table:
    """How each model did in each region."""
    table = _table("model", "region", "executions", "success", "p50", "p95", "tokens", "attempts", "refusals", "empty")
    for row in summary.rows:
        table.add_row(
            Text(one_line(row.model_id)),
            Text(one_line(row.region)),
            str(row.executions),
            f"{row.success_rate:.0%}",
            duration(row.latency_s.p50) if row.latency_s else "-",
            duration(row.latency_s.p95) if row.latency_s else "-",
            str(row.tokens.prompt + row.tokens.completion),
            str(row.attempts),
            _interval(row.outcomes.refused),
            str(row.empties),
        )
    return table


def _interval(rate: Rate) -> str:
    """A count, and the 95 % interval of its share."""
    return f"{rate.count} ({100 * rate.low:.0f}-{100 * rate.high:.0f} %)"


def regions_table(regions: Regions) -> Table:
    """Regions with their executors."""
    table = _table("region", "executors", "in flight", "budget", "waiting", "models", "last error")
    for region in regions.regions:
        table.add_row(
            Text(one_line(region.id) + (" (simulated)" if region.simulated else "")),
            str(len(region.executors)),
            str(region.in_flight),
            str(region.budget),
            str(region.queue_depth) if region.queue_depth is not None else "?",
            Text(one_line(", ".join(region.models), 60)),
            Text(one_line(region.last_error or "-", 80)),
        )
    return table


def warmth_table(warmed: Iterable["Warmed"]) -> Table:
    """What came of asking models for one token, one per row."""
    table = _table("region", "model", "took", "outcome")
    for one in warmed:
        outcome = Text("ok", style="green") if one.error is None else Text(one_line(one.error, 200), style="red")
        table.add_row(Text(one_line(one.region)), Text(one_line(one.model)), duration(one.seconds), outcome)
    return table


def letters_table(letters: Iterable["DeadLetter"]) -> Table:
    """Dead letters, one per row."""
    table = _table("id", "from", "key", "dead since", "reason")
    for letter in letters:
        cells = (letter.id, letter.queue or "?", letter.key or "?", letter.dead_at or "?", letter.reason)
        table.add_row(*(Text(one_line(cell, 120)) for cell in cells))
    return table


def keys_table(keys: Iterable["Key"]) -> Table:
    """Keys of the API, one per row."""
    table = _table("key", "label", "scope", "created", "expires", "revoked", "last used")
    for key in keys:
        moments = (key.created_at, key.expires_at, key.revoked_at, key.last_used_at)
        table.add_row(
            Text(one_line(key.key_id)),
            Text(one_line(key.label, 60)),
            Text(key.scope.value),
            *(moment.astimezone().strftime("%Y-%m-%d %H:%M") if moment else "-" for moment in moments),
        )
    return table


def _table(*columns: str, lines: bool = False) -> Table:
    table = Table(show_lines=lines, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
