"""A throttled model beside a healthy one, on a real broker."""

import asyncio
import dataclasses
from datetime import UTC, datetime
from random import Random
from typing import Final

import pytest

from executor import app
from executor.settings import Settings
from parallax.bus.port import Delivery
from parallax.clock import SystemClock
from parallax.contracts.messages import ExecutionFinished, ExecutionTask
from parallax.contracts.outcomes import ExecutionStatus
from parallax.contracts.routing import FACTS, executions, waiting
from parallax_cli.mock_script import Step
from tests.fakes.endpoint import FakeEndpoint
from tests.fakes.executor_stage import catalog, task
from tests.integration.amqp_stage import connected, eventually

pytestmark = pytest.mark.rabbitmq

THROTTLED: Final = "throttled"
MODELS: Final = ("mock", THROTTLED)
SETTINGS: Final = Settings(region="us", budget=10, breaker_cap_s=1.0, grace_s=0.0)
"""As in production, except for a model that recovers sooner and calls that are not waited for at the end."""
WITHIN_S: Final = 20.0
"""Forty calls of 50 ms, ten at once, take 0.2 s on an idle machine."""


def throttled(count: int) -> list[ExecutionTask]:
    return [task(f"t{n}", model=THROTTLED, job="job-throttled") for n in range(count)]


async def test_a_throttled_model_lets_a_healthy_one_be_called_and_ends_when_it_recovers(
    amqp_url: str, namespace: str
) -> None:
    """Failure seen: 40 of 40 executions of a healthy model timed out beside one that answered 429."""
    endpoint = FakeEndpoint((Step(delay_s=0.05),), by_model={THROTTLED: Step(status=429)})
    facts: dict[str, list[ExecutionFinished]] = {"job-throttled": [], "job-healthy": []}
    acks: set[asyncio.Task[None]] = set()

    def take(delivery: Delivery) -> None:
        fact = ExecutionFinished.model_validate_json(delivery.body)
        facts[fact.batch.job_id].append(fact)
        acks.add(asyncio.create_task(delivery.ack()))

    async with connected(amqp_url, namespace) as results, connected(amqp_url, namespace) as bus:
        await results.consume(FACTS, prefetch=1000, handler=take)
        first = dataclasses.replace(SETTINGS, executor_id="executor-1")
        second = dataclasses.replace(SETTINGS, executor_id="executor-2")
        async with (
            connected(amqp_url, namespace) as other,
            app.running(
                bus=bus, catalog=catalog(also=[THROTTLED]), endpoint=endpoint, clock=SystemClock(), settings=first,
                random=Random(1),
            ),
            app.running(
                bus=other, catalog=catalog(also=[THROTTLED]), endpoint=endpoint, clock=SystemClock(), settings=second,
                random=Random(2),
            ),
        ):  # fmt: skip
            await results.publish(*throttled(200))
            await endpoint.until_calls(1)
            began = datetime.now(UTC)
            await results.publish(*(task(f"h{n}", job="job-healthy") for n in range(40)))
            await eventually(lambda: len(facts["job-healthy"]) == 40)
            assert (datetime.now(UTC) - began).total_seconds() < WITHIN_S
            assert facts["job-throttled"] == []
            endpoint.by_model[THROTTLED] = Step(delay_s=0.01)
            await eventually(lambda: len(facts["job-throttled"]) == 200)
        left = [await results.depth(queue) for queue in (executions("us"), *(waiting("us", each) for each in MODELS))]
        await asyncio.gather(*acks)
    ended = [fact for each in facts.values() for fact in each]
    assert {fact.status for fact in ended} == {ExecutionStatus.COMPLETED}
    assert left == [0, 0, 0]
    answered = [call.request.execution_id for call in endpoint.calls if call.finished]
    assert len(answered) == len(set(answered)) == 240, "each execution is called once"
