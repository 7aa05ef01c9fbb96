"""Model endpoints whose answers come when, and as, the scheduler says."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from executor.endpoints.port import CallTrace, EndpointError, ModelAnswer, ModelRequest
from parallax.contracts.outcomes import ErrorInfo, Usage
from tests.simulation.nodes import Node


class Answer(StrEnum):
    """How a call may end."""

    OK = "ok"
    EMPTY = "empty text"
    SERVER_ERROR = "500"
    BAD_REQUEST = "400"
    NOT_READY = "503"
    THROTTLED = "429"


REFUSALS = frozenset({Answer.NOT_READY, Answer.THROTTLED})
"""Calls that the endpoint did not accept: the execution waits and is called again, wherever it then is."""


@dataclass(slots=True)
class Call:
    """One call at the provider."""

    number: int
    node: Node
    execution_id: UUID
    model: str
    done: asyncio.Future[Answer]
    aborted: bool = False
    answered: Answer | None = None

    @property
    def text(self) -> str:
        """The answer of this call and of no other."""
        return f"{self.execution_id} #{self.number}"


class SimEndpoint:
    """The provider of one executor's region."""

    provider = "simulated"
    reports_first_byte = True

    def __init__(self, node: Node) -> None:
        self._node = node

    @property
    def versions(self) -> Mapping[str, str]:
        """See the port."""
        return {}

    async def call(self, request: ModelRequest, trace: CallTrace) -> ModelAnswer:
        """See the port."""
        world = self._node.world
        await self._node.going_on("call")
        done = asyncio.get_running_loop().create_future()
        call = Call(len(world.calls), self._node, request.execution_id, request.model, done)
        trace.provider_call_id = f"call-{call.number}"
        world.call_started(call)
        try:
            call.answered = await call.done
        except asyncio.CancelledError:
            call.aborted = True
            raise
        finally:
            world.pending.remove(call)
        trace.first_byte()
        return self._answer(call)

    async def close(self) -> None:
        """See the port."""

    @staticmethod
    def _answer(call: Call) -> ModelAnswer:
        match call.answered:
            case Answer.OK:
                return ModelAnswer(
                    text=call.text, finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=1)
                )
            case Answer.EMPTY:
                return ModelAnswer(text="", finish_reason="stop")
            case Answer.SERVER_ERROR:
                raise _error("unavailable", 500, retryable=True)
            case Answer.BAD_REQUEST:
                raise _error("rejected", 400, retryable=False)
            case Answer.NOT_READY:
                raise _error("unavailable", 503, retryable=True, not_ready=True)
            case Answer.THROTTLED:
                raise _error("rate_limited", 429, retryable=True, not_ready=True)
            case None:
                raise AssertionError("a call without an answer")


def _error(error_class: str, status: int, *, retryable: bool, not_ready: bool = False) -> EndpointError:
    info = ErrorInfo(error_class=error_class, code=str(status), message=f"simulated {status}", retryable=retryable)
    return EndpointError(info, http_status=status, not_ready=not_ready)
