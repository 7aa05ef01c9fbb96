"""Commands to a running installation through its message broker, as any AMQP client may send them."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from parallax.contracts.job import JobSpec
from parallax.contracts.messages import CancelJob, SubmitJob
from parallax.errors import InvalidInputError

if TYPE_CHECKING:
    from parallax.bus.amqp import AmqpBus

URL_VARIABLE: Final = "PARALLAX_AMQP_URL"


def broker_url(environment: Mapping[str, str]) -> str | None:
    """The broker's URL, from ``PARALLAX_AMQP_URL`` or the file that ``PARALLAX_AMQP_URL_FILE`` names."""
    if not any(environment.get(name) for name in (URL_VARIABLE, f"{URL_VARIABLE}_FILE")):
        return None
    from parallax.process import secret  # noqa: PLC0415 - brings a web server along

    return secret(environment, URL_VARIABLE) or None


async def publish_submission(url: str, environment: Mapping[str, str], job_id: str, spec: JobSpec) -> None:
    """Publish a ``SubmitJob``; returns once the broker has it."""
    async with broker_bus(url, environment) as bus:
        await bus.publish(SubmitJob(job_id=job_id, job=spec, submitted_at=datetime.now(UTC)))


async def publish_cancellation(url: str, environment: Mapping[str, str], job_id: str, reason: str | None) -> None:
    """Publish a ``CancelJob``; returns once the broker has it. The job need not be known yet."""
    message = CancelJob(job_id=job_id, requested_at=datetime.now(UTC))
    async with broker_bus(url, environment) as bus:
        await bus.publish(message.model_copy(update={"reason": reason}) if reason else message)


def required_broker_url(environment: Mapping[str, str]) -> str:
    """The broker's URL.

    Raises:
        InvalidInputError: None is given.
    """
    url = broker_url(environment)
    if url is None:
        raise InvalidInputError(f"{URL_VARIABLE} is not set; expected amqp://USER:PASSWORD@HOST:5672/")
    return url


@asynccontextmanager
async def broker_bus(
    url: str, environment: Mapping[str, str], *, regions: Sequence[str] = ()
) -> AsyncIterator["AmqpBus"]:
    """A connection to the installation's broker; without ``regions`` the queues of executions are left alone."""
    from parallax.bus.amqp import connect  # noqa: PLC0415 - only who speaks AMQP waits for its library

    name = "parallax command"
    namespace = environment.get("PARALLAX_NAMESPACE")
    if namespace:
        bus = await connect(url, namespace=namespace, regions=regions, name=name)
    else:
        bus = await connect(url, regions=regions, name=name)
    try:
        yield bus
    finally:
        await bus.close()
