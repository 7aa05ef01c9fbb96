"""An endpoint without a network: follows the same steps as the mock server, and passes the same suite."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from executor.endpoints.failures import connect_failure, status_failure
from executor.endpoints.http1 import ConnectError
from executor.endpoints.port import CallTrace, EndpointError, ModelAnswer, ModelRequest
from parallax.contracts.outcomes import ErrorInfo, Usage
from parallax_cli.mock_script import Step


@dataclass(slots=True)
class FakeCall:
    """What happened to one call."""

    request: ModelRequest
    step: Step
    finished: bool = False
    aborted: bool = False


@dataclass(slots=True, eq=False)
class FakeEndpoint:
    """Answers calls of each prompt by its steps, one after the other; the last one repeats."""

    steps: tuple[Step, ...] = (Step(),)
    by_prompt: dict[str, tuple[Step, ...]] = field(default_factory=dict)
    by_model: dict[str, Step] = field(default_factory=dict)
    """The step of every call to a model, whatever its prompt; a test may change it at any time."""
    dead: set[str] = field(default_factory=set)
    """Models whose server refuses connections."""
    provider: str = "fake"
    reports_first_byte: bool = True
    versions: Mapping[str, str] = field(default_factory=dict)
    calls: list[FakeCall] = field(default_factory=list)
    most_at_once: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _turns: Counter[str] = field(default_factory=Counter)
    _open: int = 0

    async def call(self, request: ModelRequest, trace: CallTrace) -> ModelAnswer:
        """Follow the next step."""
        prompt = request.messages[-1].content
        steps = self.by_prompt.get(prompt, self.steps)
        step = self.by_model.get(request.model, steps[min(self._turns[prompt], len(steps) - 1)])
        call = FakeCall(request, step)
        self._turns[prompt] += 1
        self.calls.append(call)
        self._open += 1
        self.most_at_once = max(self.most_at_once, self._open)
        self.changed.set()
        try:
            answer = await self._answer(call, trace)
        except asyncio.CancelledError:
            call.aborted = True
            raise
        finally:
            self._open -= 1
            self.changed.set()
        call.finished = True
        return answer

    async def close(self) -> None:
        """Nothing is open."""

    async def until_calls(self, count: int) -> None:
        """Wait until so many calls were made."""
        async with asyncio.timeout(30):
            while len(self.calls) < count:
                self.changed.clear()
                await self.changed.wait()

    async def _answer(self, call: FakeCall, trace: CallTrace) -> ModelAnswer:
        step = call.step
        if call.request.model in self.dead:
            raise connect_failure(ConnectError(ConnectionRefusedError("connection refused")))
        if step.delay_s:
            await asyncio.sleep(step.delay_s)
        trace.http_status = step.status
        trace.region_observed = step.region
        if step.status != 200:
            raise status_failure(step.status, step.message, step.retry_after)
        trace.provider_call_id = f"fake-{len(self.calls)}"
        trace.first_byte()
        text = "a fake answer" if step.text is None else step.text
        words = text.split()
        for _ in words if step.token_interval_s else ():
            await asyncio.sleep(step.token_interval_s)
        if step.stall_after is not None:
            await asyncio.Event().wait()
        if step.drop_after is not None or step.garbage_after is not None:
            error_class = "connection" if step.drop_after is not None else "protocol"
            raise EndpointError(
                ErrorInfo(error_class=error_class, code="scripted", message="scripted", retryable=True), http_status=200
            )
        return ModelAnswer(
            text=text,
            refusal=step.refusal,
            finish_reason=step.finish_reason,
            usage=Usage(prompt_tokens=1, completion_tokens=len(words)),
            model_reported=call.request.upstream,
        )
