"""Whole jobs on RabbitMQ: three executor processes call Modal classes that answer with a real language model."""

from collections import Counter
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import pytest_asyncio
from grpclib import Status
from modal_proto import api_pb2

from parallax.contracts.messages import CancelJob
from tests.harness import postgres, rabbitmq
from tests.harness.modal_installation import REGIONS, Installation, modal_installation

pytestmark = [pytest.mark.rabbitmq, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    tmp_path_factory: pytest.TempPathFactory, amqp_url: str, postgres_url: str
) -> AsyncIterator[Installation]:
    """One installation for all tests here: starting its processes takes longer than running a job."""
    namespace, database = f"test-{uuid4().hex[:12]}", f"test_{uuid4().hex}"
    database_url = await postgres.create_database(postgres_url, database)
    folder = tmp_path_factory.mktemp("modal")
    async with modal_installation(
        folder, amqp_url=amqp_url, namespace=namespace, database_url=database_url
    ) as installation:
        for region in REGIONS:
            await installation.start_executor(region)
        yield installation
    await rabbitmq.delete_namespace(amqp_url, namespace)
    await postgres.drop_database(postgres_url, database)


@pytest.fixture
def installation(running: Installation) -> Installation:
    """The installation, with nothing left of the test before."""
    assert not running.plane.running
    running.plane.calls.clear()
    running.engine.aborted.clear()
    return running


async def test_a_job_is_answered_in_its_regions_and_every_fact_names_its_call(installation: Installation) -> None:
    questions = [{"id": f"q{number}", "text": f"What is {number} + {number}?"} for number in range(2)]
    await installation.submit("whole", questions=questions)
    assert await installation.outcome("whole") == "completed"
    facts = await installation.facts("whole")
    calls = {call.call_id: call for call in installation.plane.calls}
    assert len(facts) == len(calls) == 6
    for fact in facts:
        call = calls[fact["provider_id"]]
        assert call.deployed.app == f"parallax-{fact['region']}"
        assert (call.data_format == api_pb2.DATA_FORMAT_CBOR) is (fact["region"] == "apac")
        assert fact["receipt"]["provider"] == "modal"
        assert fact["receipt"]["region_claimed"] == fact["region"]
        assert fact["receipt"]["region_observed"] == REGIONS[fact["region"]]
        assert fact["attempts"][0]["provider_call_id"] == call.call_id
        assert fact["output"]["text"].strip()
        assert fact["usage"]["completion_tokens"] > 0


async def test_a_job_cancelled_in_mid_flight_cancels_every_call_at_modal(installation: Installation) -> None:
    await installation.submit("stopped", samples=2, parameters={"max_tokens": 900})
    await installation.until_calls(lambda calls: len(calls) == 6)
    await installation.bus.publish(CancelJob(job_id="stopped"))
    assert await installation.outcome("stopped") == "cancelled"
    await installation.until_calls(lambda calls: all(call.ended for call in calls))
    calls = installation.plane.calls
    assert all(call.cancels for call in calls)
    assert not any(call.terminated_containers for call in calls)
    assert sorted(installation.engine.aborted) == sorted(call.request["request_id"] for call in calls)
    facts = await installation.facts("stopped")
    assert Counter(fact["status"] for fact in facts) == {"cancelled": 6}


async def test_an_executor_that_was_killed_is_replaced_without_loss(installation: Installation) -> None:
    await installation.submit("killed", samples=2, parameters={"max_tokens": 60})
    await installation.until_calls(
        lambda calls: sum(call.deployed.app == "parallax-eu" and not call.ended for call in calls) == 2
    )
    await installation.kill_executor("eu")
    await installation.start_executor("eu")
    assert await installation.outcome("killed") == "completed"
    facts = await installation.facts("killed")
    assert Counter((fact["region"], fact["status"]) for fact in facts) == {
        (region, "completed"): 2 for region in REGIONS
    }
    calls = Counter(call.deployed.app for call in installation.plane.calls)
    assert calls["parallax-us"] == calls["parallax-apac"] == 2
    assert calls["parallax-eu"] == 4, "the two calls of the dead executor were made again, and none besides"


async def test_a_throttled_provider_slows_a_job_down_and_fails_nothing(installation: Installation) -> None:
    installation.plane.faults.fail("FunctionMap", Status.RESOURCE_EXHAUSTED, times=3, message="rate limit")
    await installation.submit("throttled", samples=2, limits={"max_attempts": 1})
    assert await installation.outcome("throttled") == "completed"
    facts = await installation.facts("throttled")
    assert [fact["status"] for fact in facts] == ["completed"] * 6
    refused = [a for fact in facts for a in fact["attempts"] if (a["error"] or {}).get("error_class") == "rate_limited"]
    assert len(refused) == 3
    assert len(installation.plane.calls) == 6
