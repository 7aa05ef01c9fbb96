"""How a job looks while it runs: pure functions from what the API says to lines and drawings."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from parallax.client.events import JobEvent
from parallax.contracts.answers import Job, JobStatus
from parallax.contracts.installation import CatalogAnswer
from parallax.contracts.outcomes import Counts
from parallax_cli.text import one_line

STATUS_STYLES: Mapping[str, str] = {
    "completed": "green", "failed": "red", "timed_out": "yellow", "cancelled": "magenta", "rejected": "red",
    "running": "cyan",
}  # fmt: skip
RUNNING_PER_REGION = 6
"""Executions named per region in the live view; the rest are counted."""


def duration(seconds: float | None) -> str:
    """Seconds as people read them: ``12.3 s``, ``4:05``, ``1:02:03``; a dash for an unknown one."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def counts_text(counts: Counts) -> Text:
    """Executions by status, what did not happen dimmed."""
    text = Text()
    for name, value in counts.model_dump().items():
        style = STATUS_STYLES[name] if value else "dim"
        text.append(f"{name} {value}   ", style=style)
    return text


def remaining_s(job: Job) -> float | None:
    """About how long the job still takes, at the pace so far; ``None`` while nothing can be said."""
    done, total, ran = job.counts.total, job.executions, job.timings.ran_s
    if job.status is not JobStatus.RUNNING or not done or not total or ran is None:
        return None
    return ran / done * max(total - done, 0)


def batches_done(job: Job) -> int:
    """Batches whose last execution is recorded."""
    return sum(lane.batches_completed for lane in job.lanes)


def live_view(job: Job, simulated: Mapping[str, bool], notice: str = "") -> RenderableType:
    """The whole picture of a running job."""
    head = Text.assemble(
        (job.id, "bold"), "  ", (job.status.value, STATUS_STYLES.get(job.status.value, "")), "  ",
        f"batches {batches_done(job)}/{job.batches or '?'}  ", f"after {duration(job.timings.ran_s)}",
    )  # fmt: skip
    left = remaining_s(job)
    if left is not None:
        head.append(f", about {duration(left)} left")
    if job.place_in_queue:
        head.append(f"  place {job.place_in_queue} in the queue")
    bar = Table.grid(padding=(0, 2))
    bar.add_row(
        ProgressBar(total=job.executions or 1, completed=job.counts.total, width=40),
        f"{job.counts.total}/{job.executions or '?'} executions",
        counts_text(job.counts),
    )
    parts: list[RenderableType] = [head, bar, _running_table(job, simulated)]
    if notice:
        parts.append(Text(notice, style="yellow"))
    return Group(*parts)


def _running_table(job: Job, simulated: Mapping[str, bool]) -> Table:
    regions = dict.fromkeys(region for model in job.plan.models for region in model.regions) if job.plan else {}
    table = Table.grid(padding=(0, 2))
    for region in regions:
        here = [r for r in job.running if r.region == region]
        named = ", ".join(f"{r.question_id}/{r.model_id}" for r in here[:RUNNING_PER_REGION])
        more = f" and {len(here) - RUNNING_PER_REGION} more" if len(here) > RUNNING_PER_REGION else ""
        label = f"{region} (simulated)" if simulated.get(region) else region
        table.add_row(Text(label, style="bold"), Text(f"{len(here)} running"), Text(named + more, style="dim"))
    return table


def simulated_regions(catalog: CatalogAnswer) -> dict[str, bool]:
    """Which regions are only pretended."""
    return {region.id: region.simulated for region in catalog.regions}


def simulation_note(job: Job, simulated: Mapping[str, bool]) -> str | None:
    """What must be said with every result of a region that is only pretended."""
    regions = dict.fromkeys(region for model in job.plan.models for region in model.regions) if job.plan else {}
    pretended = [region for region in regions if simulated.get(region)]
    if not pretended:
        return None
    return (
        f"Note: the regions {', '.join(pretended)} are simulated on one machine; only their system prompts differ. "
        "A 135M-parameter model proves that the pipeline works, and nothing about bias."
    )


def event_line(event: JobEvent) -> str | None:  # noqa: PLR0911 - one line per kind
    """One plain line about an event; ``None`` for those that say nothing new."""
    data = event.data
    match event.kind:
        case "job.accepted":
            return f"accepted: {data.get('questions')} questions, {data.get('executions')} executions"
        case "job.rejected":
            return f"rejected: {_message(data)}"
        case "job.started":
            return "started"
        case "batch.completed":
            batch, counts = data.get("batch", {}), data.get("counts", {})
            number = int(batch.get("question_index", 0)) + 1
            tally = ", ".join(f"{value} {name}" for name, value in counts.items() if value) or "nothing"
            return f"batch {number} [{one_line(str(batch.get('lane')), 40)}] done: {tally}"
        case "job.cancelled":
            return f"cancelled: {_message(data)}"
        case "job.finished":
            return f"finished: {data.get('outcome')} ({_message(data)})"
        case _:
            return None


def _message(data: Mapping[str, Any]) -> str:
    reason = data.get("reason")
    return one_line(str(reason.get("message", "")), 300) if isinstance(reason, Mapping) else ""
