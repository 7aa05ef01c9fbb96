"""How soon the model server sees the abort after a cancel: the money saved by cancelling."""

import dataclasses
import time
from contextlib import AsyncExitStack

import pytest

from executor.endpoints.openai import OpenAIEndpoint
from parallax.contracts.outcomes import ExecutionStatus
from parallax_cli.mock_script import Rule, Script, Step
from tests.fakes.executor_stage import QUICK, executor_stage, task
from tests.fakes.model_server import model_server

EXECUTORS, IN_FLIGHT = 3, 300
P99_S = 0.1
"""The aim on a machine that does nothing else; the figure is printed."""
CPU_S = 0.5
"""What the test insists on, whatever else the machine does: work of executors and server up to the last abort."""


async def test_aborts_reach_the_model_server_with_300_calls_in_flight(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Step(text="word " * 2000, token_interval_s=1.0)
    async with (
        executor_stage() as stage,
        model_server(Script(rules=(Rule(steps=(answer,)),))) as server,
        AsyncExitStack() as executors,
    ):
        for number in range(EXECUTORS):
            endpoint = OpenAIEndpoint(server.url)
            executors.push_async_callback(endpoint.close)
            settings = dataclasses.replace(
                QUICK, executor_id=f"executor-{number}", budget=IN_FLIGHT // EXECUTORS, heartbeat_s=5.0
            )
            await executors.enter_async_context(stage.executor(endpoint, settings))
        await stage.submit(*(task(f"q{n}") for n in range(IN_FLIGHT)))
        await server.until(lambda calls: sum(call.first_byte_at is not None for call in calls) == IN_FLIGHT)
        cancelled_at, cpu_s = time.time(), time.process_time()
        await stage.cancel("job-1")
        await server.until(lambda calls: all(call.aborted_at is not None for call in calls))
        cpu_s = time.process_time() - cpu_s
        facts = await stage.until_facts(IN_FLIGHT)
    delays = sorted(call.aborted_at - cancelled_at for call in server.calls if call.aborted_at is not None)
    p50, p99 = delays[len(delays) // 2], delays[int(len(delays) * 0.99)]
    with capsys.disabled():
        print(f"\ncancel to abort: p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms (aim: {P99_S * 1000:.0f} ms)")
        print(f"work up to the last abort: {cpu_s * 1000:.0f} ms of CPU")
    assert len(delays) == IN_FLIGHT
    assert {fact.status for fact in facts} == {ExecutionStatus.CANCELLED}
    assert cpu_s < CPU_S
