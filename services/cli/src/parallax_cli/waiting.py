"""Waiting, for a bounded time, until a job shows what was asked of it."""

import asyncio
from collections.abc import Callable
from typing import Final

from parallax.client import NotFoundError, ParallaxClient
from parallax.contracts.answers import Job, JobStatus

PATIENCE_S: Final = 15.0
"""A healthy installation takes well under a second; what takes longer goes on without us."""
APPEARANCE_S: Final = 3.0
"""From a message to the job it asks for; short, because a mistyped id waits for nothing."""
POLL_S: Final = 0.1


async def until(client: ParallaxClient, job_id: str, shows: Callable[[Job], bool]) -> Job:
    """The job, as soon as it shows this or after ``PATIENCE_S``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_S
    while True:
        job = await client.job(job_id)
        if shows(job) or loop.time() > deadline:
            return job
        await asyncio.sleep(POLL_S)


async def until_known(client: ParallaxClient, job_id: str, shows: Callable[[Job], bool]) -> Job:
    """As ``until``, for a job that was sent a moment ago and may not be visible yet.

    Raises:
        NotFoundError: It did not become visible.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + APPEARANCE_S
    while True:
        try:
            return await until(client, job_id, shows)
        except NotFoundError:
            if loop.time() > deadline:
                raise
            await asyncio.sleep(POLL_S)


def is_settled(job: Job) -> bool:
    """Whether the job has ended and everything of it is recorded."""
    return job.finished_at is not None or job.status is JobStatus.REJECTED


def is_decided(job: Job) -> bool:
    """Whether the dispatcher has accepted or rejected the job."""
    return job.status is not JobStatus.SUBMITTED
