"""What an executor answers to a fence, and that nobody holds work before results has heard of it."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from parallax.bus.memory import MemoryBus
from parallax.bus.port import Bus, Consumption, Delivery
from parallax.contracts.heartbeat import ExecutorHeartbeat
from parallax.contracts.messages import ExecutionTask, InspectionFence, Message
from parallax.contracts.routing import HEARTBEATS, executions
from parallax.errors import UnavailableError, UnconfirmedError
from parallax_cli.mock_script import Step
from tests.fakes.endpoint import FakeEndpoint
from tests.fakes.executor_stage import QUICK, ExecutorStage, executor_stage, task
from tests.integration.dispatcher_stage import BusInBetween

FOREVER = Step(delay_s=600)
SELDOM = dataclasses.replace(QUICK, heartbeat_s=600.0)


@pytest.fixture
async def stage() -> AsyncIterator[ExecutorStage]:
    async with executor_stage() as stage:
        yield stage


async def answer(stage: ExecutorStage, token: str = "t") -> set[UUID]:
    """What the executor answers to a fence that is written now."""
    await stage.bus.publish(InspectionFence(token=token, regions=("us",), batches=(task().batch,)))
    found: dict[str, set[UUID]] = {}

    def answered() -> bool:
        found.update({each.token: set(each.executions) for beat in stage.heartbeats for each in beat.fences})
        return token in found

    await stage.until(answered)
    return found[token]


async def test_a_fence_is_answered_without_waiting_for_the_next_heartbeat(stage: ExecutorStage) -> None:
    async with stage.executor(FakeEndpoint(), SELDOM):
        assert await answer(stage) == set()


async def test_an_answer_lists_what_runs_what_ended_and_what_was_handed_back(stage: ExecutorStage) -> None:
    endpoint = FakeEndpoint((Step(), FOREVER))
    async with stage.executor(endpoint, dataclasses.replace(QUICK, grace_s=0.0)):
        ended = await stage.fact_of(task("q1"))
        await stage.submit(task("q2"))
        await endpoint.until_calls(2)
        await stage.until(lambda: bool(stage.heartbeats[-1].running))
        assert await answer(stage) == {ended.execution_id, task("q2").execution_id}
        await stage.cancel("job-1")


async def test_a_task_that_was_handed_back_is_listed_for_a_while(stage: ExecutorStage) -> None:
    refusing = FakeEndpoint((Step(status=503),))
    async with stage.executor(refusing, dataclasses.replace(QUICK, hand_back_after_s=0.2)):
        await stage.submit(task())
        await refusing.until_calls(1)
        taken: asyncio.Queue[Delivery] = asyncio.Queue()
        consumption = await stage.bus.consume(executions("us"), prefetch=10, handler=taken.put_nowait)
        await taken.get()
        assert task().execution_id in await answer(stage)
        await consumption.close()


async def test_a_leaving_executor_answers_nothing(stage: ExecutorStage) -> None:
    """Deliveries that arrive while it leaves are here, and nobody looks at them."""
    endpoint = FakeEndpoint((FOREVER,))
    async with stage.executor(endpoint, dataclasses.replace(QUICK, grace_s=0.3)):
        await stage.submit(task())
        await endpoint.until_calls(1)
        await answer(stage)
        before = len(stage.heartbeats)
    await stage.until(lambda: stage.heartbeats[-1].stopping)
    last = [beat for beat in stage.heartbeats[before:] if not beat.running or beat.stopping]
    assert last[-1].fences == ()


async def test_no_task_is_taken_before_results_can_know_the_executor(stage: ExecutorStage) -> None:
    """Whoever holds work must be asked where it is."""

    class Watched(BusInBetween):
        known_first: bool | None = None

        async def consume(self, queue: object, **rest: object) -> Consumption:
            self.known_first = bool(stage.heartbeats) or stage.broker.depth(HEARTBEATS) > 0
            return await super().consume(queue, **rest)  # type: ignore[arg-type]

    watched = Watched(MemoryBus(stage.broker))
    async with stage.executor(FakeEndpoint(), bus=watched):
        assert watched.known_first


async def test_an_executor_that_cannot_introduce_itself_does_not_start(stage: ExecutorStage) -> None:
    class Mute(BusInBetween):
        async def publish(self, *messages: Message) -> None:
            if any(isinstance(message, ExecutorHeartbeat) for message in messages):
                raise UnavailableError("away")
            await super().publish(*messages)

    with pytest.raises(UnavailableError):
        async with stage.executor(FakeEndpoint(), bus=Mute(MemoryBus(stage.broker))):
            pass


async def test_a_task_handed_back_with_an_unknown_outcome_is_not_repeated(stage: ExecutorStage) -> None:
    """It had arrived: one more copy would be run by a second executor."""

    class Silent(BusInBetween):
        def __init__(self, bus: Bus) -> None:
            super().__init__(bus)
            self.silent = True

        async def published(self, message: Message) -> None:
            if self.silent and isinstance(message, ExecutionTask):
                raise UnconfirmedError("no answer")

    endpoint = FakeEndpoint((FOREVER,))
    async with stage.executor(endpoint, dataclasses.replace(QUICK, grace_s=0.0), bus=Silent(MemoryBus(stage.broker))):
        await stage.submit(task())
        await endpoint.until_calls(1)
    assert stage.broker.depth(executions("us")) == 1
