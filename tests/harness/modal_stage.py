"""A control plane on loopback and an endpoint that calls it with the real SDK."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import modal
from modal_proto import api_pb2

from executor.endpoints.modal import ModalEndpoint, report_throttling_at_once
from executor.endpoints.port import CallTrace, ModelRequest
from modal_deployment.answering import Where, answer
from modal_deployment.engine import Engine
from modal_deployment.plan import ModelPlan
from parallax.contracts.job import Parameters
from parallax.contracts.outcomes import ChatMessage
from parallax_cli.mock_script import Step
from tests.fakes.engines import ScriptedEngine
from tests.fakes.modal_control_plane import TOKEN_ID, TOKEN_SECRET, Call, ControlPlane, Handler, control_plane
from tests.fakes.modal_script import ScriptedClass

APP = "parallax-eu"
CLASS = "Inference"
MODEL = ModelPlan(name="tiny", upstream="org/tiny", revision=None, max_model_len=512)
REGION_OBSERVED = "eu-west-1"


def serving_engine(engine: Engine, model: ModelPlan = MODEL) -> Handler:
    """A class whose containers answer with the request handling of the deployment."""
    where = Where(region=REGION_OBSERVED, cloud="aws", container="ta-1")

    async def generate(name: str, request: Any) -> object:
        assert name == model.name
        return await answer(engine, request, model=model, where=where, monotonic=time.monotonic)

    return generate


def request(text: str = "Why?", **changes: Any) -> ModelRequest:
    """A call of the model."""
    fields: dict[str, Any] = {
        "execution_id": uuid4(),
        "attempt": 1,
        "model": MODEL.name,
        "upstream": MODEL.upstream,
        "revision": None,
        "messages": (ChatMessage(role="user", content=text),),
        "parameters": Parameters(temperature=0.0, max_tokens=16),
    }
    return ModelRequest(**{**fields, **changes})


def trace() -> CallTrace:
    """A trace that nobody listens to."""
    return CallTrace(on_first_byte=lambda: None)


@dataclass(slots=True)
class Stage:
    """What a test of the endpoint needs."""

    plane: ControlPlane
    url: str
    endpoint: ModalEndpoint
    engine: ScriptedEngine = field(default_factory=ScriptedEngine)

    async def until(self, condition: Callable[[list[Call]], bool]) -> None:
        """Wait until the calls of the control plane are like this."""
        async with asyncio.timeout(30):
            while not condition(self.plane.calls):
                self.plane.changed.clear()
                await self.plane.changed.wait()


def endpoint_for(url: str, *, secret: str = TOKEN_SECRET, lookup_timeout_s: float = 30.0) -> ModalEndpoint:
    """An endpoint whose client talks to a control plane at this URL."""

    async def connect() -> modal.Client:
        client: Any = modal.Client(url, api_pb2.CLIENT_TYPE_CLIENT, (TOKEN_ID, secret))
        opened: modal.Client = await client.__aenter__()
        return opened

    report_throttling_at_once(os.environ)
    return ModalEndpoint(APP, CLASS, connect=connect, lookup_timeout_s=lookup_timeout_s, poll_s=5.0)


@asynccontextmanager
async def stage(engine: ScriptedEngine | None = None, *, steps: tuple[Step, ...] = ()) -> AsyncIterator[Stage]:
    """A deployed class over a scripted engine, or one that follows steps."""
    plane = ControlPlane()
    scripted = engine or ScriptedEngine()
    plane.deploy(APP, CLASS, ScriptedClass(plane, steps) if steps else serving_engine(scripted))
    async with asyncio.timeout(60), control_plane(plane) as url:
        endpoint = endpoint_for(url)
        try:
            yield Stage(plane, url, endpoint, scripted)
        finally:
            async with asyncio.timeout(20):
                await endpoint.close()
