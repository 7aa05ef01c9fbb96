"""The services as their users run them: processes on a real broker and a real database, which tests hurt.

Every job must end with each of its executions in the ledger exactly once, whatever is struck in its middle.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from uuid import uuid4

import aio_pika
import pytest
import pytest_asyncio

from tests.chaos import broker, database
from tests.harness.accounts import Accounts, draw_job, settle
from tests.harness.installation import Installation, installation
from tests.harness.rabbitmq import Node

pytestmark = [pytest.mark.rabbitmq, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory, rabbitmq_node: Node) -> AsyncIterator[Installation]:
    """One replica of each service, three regions."""
    folder = tmp_path_factory.mktemp("installation")
    async with installation(folder, rabbitmq_node, namespace=f"processes-{uuid4().hex[:8]}") as made:
        yield made


async def _kill(made: Installation, name: str) -> None:
    made.kill(name)


STRIKES: dict[str, Callable[[Installation], Awaitable[None]]] = {
    "dispatcher killed": lambda made: _kill(made, "dispatcher-0"),
    "results killed": lambda made: _kill(made, "results-0"),
    "executor killed": lambda made: _kill(made, "executor-eu-0"),
    "broker app restarted": lambda made: broker.restart_app(made, Random(1)),
    "broker node killed": lambda made: broker.kill_node(made, Random(1)),
    "database killed": lambda made: database.kill(made, Random(1)),
    "connections cut": lambda made: broker.cut(made, Random(1)),
    "network paused": lambda made: broker.network_pause(made, Random(1)),
    "memory alarm": lambda made: broker.memory_alarm(made, Random(1)),
}


@pytest.mark.parametrize("strike", STRIKES.values(), ids=STRIKES.keys())
async def test_a_job_survives(
    running: Installation,
    strike: Callable[[Installation], Awaitable[None]],
    record_property: Callable[[str, object], None],
) -> None:
    accounts = Accounts()
    job = f"survivor-{uuid4().hex[:8]}"
    accounts.jobs[job] = draw_job(Random(job), job, questions=5)
    await running.submit(job, accounts.jobs[job])
    await running.wait_for("SELECT count(*) >= 6 FROM results.executions WHERE job_id = :job", job=job)
    await strike(running)
    await running.wait_for(_ENDED, job=job)
    await running.ready()
    balance = await settle(running, accounts)
    record_property("duplicates_explained", balance.duplicates_explained)
    assert not any(balance.faults.values()), balance
    assert balance.by_status == {"completed": 30}


_ENDED = "SELECT outcome IS NOT NULL FROM results.jobs WHERE job_id = :job"


async def test_replicas_join_and_leave_under_load(running: Installation) -> None:
    accounts = Accounts()
    for number in range(3):
        job = f"load-{number}-{uuid4().hex[:8]}"
        accounts.jobs[job] = draw_job(Random(number), job, questions=6)
        await running.submit(job, accounts.jobs[job])
    names = ("dispatcher-0", "results-0", "executor-us-0", "executor-eu-0", "executor-apac-0")
    twins = [running.add_twin(name) for name in names]
    await running.ready(twins)
    codes = await asyncio.gather(*(running.remove(name) for name in names))
    assert codes == [0] * len(names), "every service leaves in good order"
    for name in names:
        running.bring_back(name)
    await running.ready()
    await asyncio.gather(*(running.remove(twin) for twin in twins))
    for job in accounts.jobs:
        await running.wait_for(_ENDED, job=job)
    balance = await settle(running, accounts)
    assert not any(balance.faults.values()), balance
    assert balance.by_status == {"completed": 108}


async def test_a_raw_message_is_enough(running: Installation) -> None:
    """Any AMQP client can submit a job and is told what became of it."""
    job = f"raw-{uuid4().hex[:8]}"
    body = {
        "job_id": job,
        "job": {
            "name": "raw",
            "questions": [{"id": "q1", "text": "delay 50 ms"}],
            "models": [{"id": "mock"}],
            "regions": ["us", "eu"],
        },
    }
    connection = await aio_pika.connect(running.node.url)
    async with connection:
        channel = await connection.channel()
        answers = await channel.declare_queue(exclusive=True)
        exchange = await channel.get_exchange(running.namespace)
        for content, correlation in ((body, "first"), ({"job_id": job, "job": {"name": "other"}}, "second")):
            await exchange.publish(
                aio_pika.Message(json.dumps(content).encode(), reply_to=answers.name, correlation_id=correlation),
                routing_key="job.submit",
            )
        replies: dict[str, str] = {}
        async with asyncio.timeout(60), answers.iterator() as arriving:
            async for answer in arriving:
                async with answer.process():
                    replies[str(answer.correlation_id)] = json.loads(answer.body)["kind"]
                if len(replies) == 2:
                    break
    assert replies == {"first": "job_accepted", "second": "job_rejected"}
    await running.wait_for(_ENDED, job=job)
    facts = await running.rows("SELECT status FROM results.executions WHERE job_id = :job", job=job)
    assert [fact["status"] for fact in facts] == ["completed", "completed"]


async def test_a_region_queue_deleted_in_mid_job(running: Installation) -> None:
    accounts = Accounts()
    job = f"deleted-{uuid4().hex[:8]}"
    accounts.jobs[job] = draw_job(Random(5), job, questions=4)
    await running.submit(job, accounts.jobs[job])
    await running.wait_for("SELECT count(*) >= 6 FROM results.executions WHERE job_id = :job", job=job)
    connection = await aio_pika.connect(running.node.url)
    async with connection:
        channel = await connection.channel()
        await channel.queue_delete(f"{running.namespace}.executions.eu")
    await running.wait_for(_ENDED, job=job)
    balance = await settle(running, accounts)
    assert not any(balance.faults.values()), balance


async def test_a_broker_that_lost_its_disk(running: Installation) -> None:
    accounts = Accounts()
    job = f"wiped-{uuid4().hex[:8]}"
    accounts.jobs[job] = draw_job(Random(7), job, questions=4)
    await running.submit(job, accounts.jobs[job])
    await running.wait_for("SELECT count(*) >= 6 FROM results.executions WHERE job_id = :job", job=job)
    await broker.lose_disk(running, Random(1))
    await running.wait_for("SELECT phase = 'finished' FROM dispatcher.jobs WHERE id = :job", job=job)
    await running.wait_for(_ENDED, job=job)
    balance = await settle(running, accounts)
    assert not any(balance.faults.values()), balance
