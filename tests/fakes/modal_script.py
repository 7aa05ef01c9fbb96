"""A Modal class that follows the same steps as the mock server: what HTTP says by a status, Modal says its own way."""

import asyncio
from typing import Any

from grpclib import Status
from modal_proto import api_pb2

from parallax_cli.mock_script import Step
from tests.fakes.modal_control_plane import ContainerLostError, ContainerTimeoutError, ControlPlane

_REFUSED = {
    400: Status.INVALID_ARGUMENT,
    401: Status.UNAUTHENTICATED,
    403: Status.PERMISSION_DENIED,
    404: Status.NOT_FOUND,
    422: Status.UNIMPLEMENTED,
    425: Status.UNAVAILABLE,
    429: Status.RESOURCE_EXHAUSTED,
    500: Status.INTERNAL,
    502: Status.DATA_LOSS,
    503: Status.UNAVAILABLE,
}
"""How Modal refuses to start a call where an HTTP server answers with this status."""
SDK_TRIES = 4
"""The SDK tries a call again three times after an error that it takes to be transient."""
_TRANSIENT = {Status.UNAVAILABLE, Status.INTERNAL}


class ScriptedClass:
    """Follows its steps, one per call; the last one repeats."""

    def __init__(self, plane: ControlPlane, steps: tuple[Step, ...]) -> None:
        self._plane = plane
        self._steps = list(steps)
        self._prepare()

    def _prepare(self) -> None:
        """Script the control plane for the next call."""
        step = self._steps[0]
        if step.status in _REFUSED:
            status = _REFUSED[step.status]
            asked = [api_pb2.RPCRetryPolicy(retry_after_secs=float(step.retry_after))] if step.retry_after else None
            times = SDK_TRIES if status in _TRANSIENT else 1
            self._plane.faults.fail("FunctionMap", status, times=times, details=asked, message=step.message)

    async def __call__(self, _: str, request: Any) -> object:
        """Answer one input."""
        step = self._steps[0]
        if len(self._steps) > 1:
            self._steps.pop(0)
            self._prepare()
        text = request["messages"][-1]["content"] if step.text is None else step.text
        words = text.split()
        await asyncio.sleep(step.delay_s + step.token_interval_s * len(words))
        if step.status == 408:
            raise ContainerTimeoutError(step.message)
        if step.status == 504 or step.drop_after is not None:
            raise ContainerLostError(step.message)
        if step.garbage_after is not None:
            return "garbage"
        return {
            "version": 1,
            "text": text,
            "refusal": step.refusal,
            "finish_reason": step.finish_reason,
            "usage": {"prompt_tokens": 3, "completion_tokens": len(words)},
            "upstream": request["upstream"],
            "region": step.region,
        }
