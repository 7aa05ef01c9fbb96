"""Which models are asked for a token, how often, and for how long."""

import asyncio
from typing import Any

import pytest

from executor.endpoints.port import Endpoint
from parallax.catalog import Catalog
from parallax.contracts.job import JobSpec
from parallax.errors import InvalidInputError
from parallax_cli.mock_script import Step
from parallax_cli.warming import AGAIN_S, warm
from tests.fakes.clock import LeapingClock
from tests.fakes.endpoint import FakeEndpoint

FOR_EVER_S = 3_600.0


def catalog(**region: Any) -> Catalog:
    """Two regions, each at an endpoint of its own; with something changed in both."""
    document = {
        "regions": {name: {"name": name, "endpoint": f"openai+http://{name}/v1", **region} for name in ("us", "eu")},
        "models": {
            "a": {"upstream": "maker/a", "revision": "r1", "regions": ["us", "eu"]},
            "b": {"upstream": "maker/b", "regions": ["us"]},
        },
    }
    return Catalog.model_validate(document, strict=False)


def job(**changes: Any) -> JobSpec:
    """One question to one model in both regions, with something changed."""
    document = {
        "name": "job", "questions": [{"id": "q", "text": "?"}], "models": [{"id": "a"}], "regions": ["us", "eu"],
        **changes,
    }  # fmt: skip
    return JobSpec.model_validate(document, strict=False)


async def test_each_model_is_asked_once_in_each_of_its_regions_for_one_token() -> None:
    endpoints = {"openai+http://us/v1": FakeEndpoint(), "openai+http://eu/v1": FakeEndpoint()}
    variants = [{"id": "cool", "model": "a"}, {"id": "hot", "model": "a"}, {"id": "b", "regions": ["us"]}]
    spec = job(models=variants, samples=3, parameters={"max_tokens": 500})
    warmed = await warm(catalog(), spec, endpoints.__getitem__, LeapingClock())
    assert [(one.region, one.model, one.error) for one in warmed] == [
        ("eu", "a", None), ("us", "a", None), ("us", "b", None),
    ]  # fmt: skip
    asked = [call.request for endpoint in endpoints.values() for call in endpoint.calls]
    assert [(one.upstream, one.revision) for one in asked] == [("maker/a", "r1"), ("maker/b", None), ("maker/a", "r1")]
    assert {one.parameters.max_tokens for one in asked} == {1}


async def test_a_retry_warms_only_what_it_repeats() -> None:
    spec = job(only=[{"question_id": "q", "model_id": "a", "region": "eu"}])
    warmed = await warm(catalog(), spec, lambda _: FakeEndpoint(), LeapingClock())
    assert [(one.region, one.model) for one in warmed] == [("eu", "a")]


async def test_an_endpoint_that_starts_is_asked_again() -> None:
    endpoint, clock = FakeEndpoint((Step(status=503), Step(status=429, retry_after="30"), Step())), LeapingClock()
    [one] = await warm(catalog(cold_start_s=60), job(regions=["us"]), lambda _: endpoint, clock)
    assert one.error is None
    assert clock.pauses == [AGAIN_S, 30.0]
    assert one.seconds == pytest.approx(32.0)
    assert [call.request.attempt for call in endpoint.calls] == [1, 2, 3]


@pytest.mark.parametrize(("cold_start_s", "calls"), [(0.0, 1), (3 * AGAIN_S, 4)])
async def test_no_longer_than_it_may_take_to_start(cold_start_s: float, calls: int) -> None:
    endpoint = FakeEndpoint((Step(status=503, message="asleep"),))
    [one] = await warm(catalog(cold_start_s=cold_start_s), job(regions=["us"]), lambda _: endpoint, LeapingClock())
    assert one.error is not None
    assert "asleep" in one.error
    assert len(endpoint.calls) == calls


async def test_any_other_error_is_told_at_once() -> None:
    endpoint = FakeEndpoint((Step(status=401, message="no key"),))
    [one] = await warm(catalog(cold_start_s=60), job(regions=["us"]), lambda _: endpoint, LeapingClock())
    assert one.error == "authentication: HTTP 401: no key"
    assert len(endpoint.calls) == 1


async def test_a_call_without_end_is_aborted_and_keeps_nobody_else_waiting() -> None:
    stuck, sound = FakeEndpoint((Step(delay_s=FOR_EVER_S),)), FakeEndpoint()
    endpoints = {"openai+http://us/v1": stuck, "openai+http://eu/v1": sound}
    eu, us = await warm(catalog(), job(), endpoints.__getitem__, LeapingClock(), answer_s=0.05)
    assert (eu.error, us.error) == (None, "no answer within 0.05 s")
    assert stuck.calls[0].aborted


async def test_cancelling_aborts_every_call() -> None:
    endpoint = FakeEndpoint((Step(delay_s=FOR_EVER_S),))
    warming = asyncio.create_task(warm(catalog(), job(), lambda _: endpoint, LeapingClock()))
    await endpoint.until_calls(2)
    warming.cancel()
    await asyncio.wait({warming})
    assert [call.aborted for call in endpoint.calls] == [True, True]


async def test_an_endpoint_that_cannot_be_right_is_named_by_its_region() -> None:
    def refuse(url: str) -> Endpoint:
        raise InvalidInputError(f"{url} is wrong")

    with pytest.raises(InvalidInputError, match=r"region eu: .* is wrong"):
        await warm(catalog(), job(), refuse, LeapingClock())
