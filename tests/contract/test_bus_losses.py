"""One translation of everything the client library does when a connection is lost."""

import asyncio

import pytest
from aiormq.exceptions import AMQPConnectionError, ChannelInvalidStateError, ChannelNotFoundEntity

from parallax.bus.amqp.connection import loss_is_unavailable
from parallax.errors import StaleDeliveryError, UnavailableError


@pytest.mark.parametrize(
    "error",
    [
        AMQPConnectionError("reset"),
        ChannelInvalidStateError("closed"),
        ChannelNotFoundEntity("no queue"),
        ConnectionResetError("reset"),
        TimeoutError(),
        StopAsyncIteration(),
        asyncio.CancelledError(),
        Exception(),
    ],
    ids=repr,
)
async def test_every_loss_is_unavailable(error: BaseException) -> None:
    with pytest.raises(UnavailableError, match="publishing"), loss_is_unavailable("publishing"):
        raise error


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), RuntimeError("a bug"), StaleDeliveryError("stale"), KeyboardInterrupt()], ids=repr
)
async def test_nothing_else_is(error: BaseException) -> None:
    with pytest.raises(type(error)), loss_is_unavailable("publishing"):
        raise error


async def test_a_task_that_somebody_cancels_stays_cancelled() -> None:
    async def wait() -> None:
        with loss_is_unavailable("publishing"):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
