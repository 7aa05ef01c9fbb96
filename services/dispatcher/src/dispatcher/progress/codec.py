"""Progress as JSON data, for the database. Written out by hand: what is stored is a contract with older versions."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from dispatcher.progress.state import (
    Batch,
    Closing,
    Cut,
    Ending,
    Fence,
    Job,
    Lane,
    Outcome,
    Phase,
    Rules,
    StopRule,
    Tally,
)


def encode(job: Job) -> dict[str, Any]:
    """The job as a JSON object; ``decode`` gives an equal job."""
    return {
        "rules": _rules(job.rules),
        "lanes": [{"name": lane.name, "batch": lane.batch and _batch(lane.batch)} for lane in job.lanes],
        "phase": job.phase.value,
        "started_at": job.started_at and job.started_at.isoformat(),
        "tally": _tally(job.tally),
        "batches_completed": job.batches_completed,
        "ending": job.ending and _ending(job.ending),
    }


def decode(data: Mapping[str, Any]) -> Job:
    """The job that ``encode`` wrote, in this version or another: newer keys are ignored, and may be missing.

    Raises:
        KeyError, ValueError, TypeError: The data was not written by ``encode``.
    """
    ending = data["ending"]
    return Job(
        rules=_read_rules(data["rules"]),
        lanes=tuple(Lane(lane["name"], lane["batch"] and _read_batch(lane["batch"])) for lane in data["lanes"]),
        phase=Phase(data["phase"]),
        started_at=data["started_at"] and datetime.fromisoformat(data["started_at"]),
        tally=_read_tally(data["tally"]),
        batches_completed=data["batches_completed"],
        ending=ending and _read_ending(ending),
    )


def _rules(rules: Rules) -> dict[str, Any]:
    stop = rules.stop
    return {
        "questions": rules.questions,
        "executions": rules.executions,
        "batch_deadline_s": rules.batch_deadline.total_seconds(),
        "job_deadline_s": rules.job_deadline.total_seconds(),
        "min_success_rate": rules.min_success_rate,
        "stop": stop and {"failure_rate": stop.failure_rate, "after_batches": stop.after_batches},
    }


def _read_rules(data: Mapping[str, Any]) -> Rules:
    return Rules(
        questions=data["questions"],
        executions=data["executions"],
        batch_deadline=timedelta(seconds=data["batch_deadline_s"]),
        job_deadline=timedelta(seconds=data["job_deadline_s"]),
        min_success_rate=data["min_success_rate"],
        stop=data["stop"] and StopRule(data["stop"]["failure_rate"], data["stop"]["after_batches"]),
    )


def _tally(tally: Tally) -> dict[str, int]:
    return {
        "completed": tally.completed,
        "failed": tally.failed,
        "timed_out": tally.timed_out,
        "cancelled": tally.cancelled,
    }


def _read_tally(data: Mapping[str, int]) -> Tally:
    return Tally(data["completed"], data["failed"], data["timed_out"], data["cancelled"])


def _ending(ending: Ending) -> dict[str, Any]:
    return {
        "outcome": ending.outcome.value,
        "closing": _closing(ending.closing),
        "at": ending.at and ending.at.isoformat(),
        "announced": ending.announced,
    }


def _read_ending(data: Mapping[str, Any]) -> Ending:
    return Ending(
        Outcome(data["outcome"]),
        _read_closing(data["closing"]),
        at=_moment(data.get("at")),
        announced=data.get("announced", False),
    )


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _closing(closing: Closing) -> dict[str, str]:
    return {"cut": closing.cut.value, "code": closing.code, "message": closing.message}


def _read_closing(data: Mapping[str, str]) -> Closing:
    return Closing(Cut(data["cut"]), data["code"], data["message"])


def _batch(batch: Batch) -> dict[str, Any]:
    return {
        "index": batch.index,
        "size": batch.size,
        "opened_at": batch.opened_at.isoformat(),
        "deadline": batch.deadline.isoformat(),
        "asked_at": batch.asked_at.isoformat(),
        "closing": batch.closing and _closing(batch.closing),
        "opening_until": batch.opening_until and batch.opening_until.isoformat(),
        "fence": batch.fence and {"token": batch.fence.token, "at": batch.fence.at.isoformat()},
    }


def _read_batch(data: Mapping[str, Any]) -> Batch:
    fence = data.get("fence")
    return Batch(
        index=data["index"],
        size=data["size"],
        opened_at=datetime.fromisoformat(data["opened_at"]),
        deadline=datetime.fromisoformat(data["deadline"]),
        asked_at=datetime.fromisoformat(data["asked_at"]),
        closing=data["closing"] and _read_closing(data["closing"]),
        opening_until=_moment(data.get("opening_until")),
        fence=fence and Fence(fence["token"], datetime.fromisoformat(fence["at"])),
    )
