"""The gateway's calls: leaving one has to cancel it."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from modal_deployment.gateway import call


class Method:
    """A method of a Modal class as the SDK gives it: every call of it can be followed and cancelled."""

    def __init__(self) -> None:
        self.spawned: list[Any] = []
        self.cancelled: list[bool] = []
        self.waited_for = asyncio.Event()
        self.result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.spawn = SimpleNamespace(aio=self._spawn)

    async def _spawn(self, request: Any) -> Any:
        self.spawned.append(request)
        return SimpleNamespace(get=SimpleNamespace(aio=self._get), cancel=SimpleNamespace(aio=self._cancel))

    async def _get(self) -> Any:
        self.waited_for.set()
        return await asyncio.shield(self.result)

    async def _cancel(self, *, terminate_containers: bool) -> None:
        self.cancelled.append(terminate_containers)


async def test_the_answer_of_the_call_is_handed_on() -> None:
    method = Method()
    method.result.set_result({"text": "hi"})
    assert await call(method, {"request_id": "1"}) == {"text": "hi"}
    assert (method.spawned, method.cancelled) == ([{"request_id": "1"}], [])


async def test_leaving_a_call_cancels_it_and_never_the_container() -> None:
    method = Method()
    waiting = asyncio.create_task(call(method, {}))
    await method.waited_for.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert method.cancelled == [False]
