"""Queues that no bus knows from the start: they are declared by the first that needs them."""

import asyncio

import pytest

from parallax.bus.port import Bus
from parallax.contracts.messages import ExecutionTask, WaitingTask
from parallax.contracts.routing import DEAD_EXECUTIONS, executions, waiting
from parallax.errors import UnroutableError
from tests.contract.buses import Installation
from tests.contract.hands import Hands, depth_becomes
from tests.fakes.executor_stage import task

MODEL = "mock"
QUEUE = waiting("us", MODEL)


def moved(question: str = "q1", *, region: str = "us") -> WaitingTask:
    return WaitingTask.model_validate(dict(task(question, model=MODEL, region=region)))


async def test_the_first_publisher_declares_a_waiting_queue(bus: Bus) -> None:
    await bus.publish(moved("q1"), moved("q2"))
    await depth_becomes(bus, QUEUE, 2)
    await depth_becomes(bus, executions("us"), 0)
    hands = Hands()
    await bus.consume(QUEUE, prefetch=10, handler=hands)
    await hands.hold(2)
    read = [ExecutionTask.model_validate_json(delivery.body) for delivery in hands.held]
    assert [each.question_id for each in read] == ["q1", "q2"]


async def test_the_first_consumer_declares_a_waiting_queue(bus: Bus) -> None:
    hands = Hands()
    await bus.consume(QUEUE, prefetch=10, handler=hands)
    await bus.publish(moved())
    await hands.hold(1)


async def test_a_waiting_queue_that_nobody_needed_yet_is_empty(bus: Bus) -> None:
    assert await bus.depth(QUEUE) == 0


async def test_a_waiting_task_that_nobody_can_handle_is_a_dead_execution(installation: Installation) -> None:
    """Models' names may hold dots: the key has more words than that of a region's queue."""
    bus, dotted, hands = await installation.client(), waiting("us", "org.model-1.5"), Hands()
    await bus.consume(dotted, prefetch=10, handler=hands)
    await bus.publish(WaitingTask.model_validate(dict(task(model="org.model-1.5"))))
    (delivery,) = await hands.hold(1)
    await delivery.reject("for the test")
    await depth_becomes(bus, DEAD_EXECUTIONS, 1)


async def test_there_is_no_waiting_queue_of_a_region_that_does_not_exist(bus: Bus) -> None:
    with pytest.raises(UnroutableError):
        await bus.publish(moved(region="mars"))
    with pytest.raises(UnroutableError):
        await bus.depth(waiting("mars", MODEL))


async def test_waiting_queues_of_many_models_do_not_mix(bus: Bus) -> None:
    models = ("mock", "throttled")
    await bus.publish(*(WaitingTask.model_validate(dict(task(model=model))) for model in models))
    await asyncio.gather(*(depth_becomes(bus, waiting("us", model), 1) for model in models))
