"""How an executor calls a model, whoever serves it.

``tests/contract/test_endpoint.py`` is the suite every endpoint must pass. What a call may cost in time is the
runner's business: it cancels the awaiting task when a limit strikes, and an endpoint makes sure that a cancelled
call ends at the provider too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from pydantic import JsonValue

from parallax.contracts.job import Parameters
from parallax.contracts.outcomes import ChatMessage, ErrorInfo, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """One call."""

    execution_id: UUID
    attempt: int
    """Number of the attempt, from 1: with the id it makes a key that is unique per call."""
    model: str
    """The model's name in the catalog."""
    upstream: str
    """The name the endpoint knows the model by."""
    revision: str | None
    messages: tuple[ChatMessage, ...]
    parameters: Parameters
    """As they are to be sent: the seed is that of the sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAnswer:
    """What the model said. An empty text, a refusal and a length limit are answers; text is as it was received."""

    text: str
    refusal: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    model_reported: str | None = None
    provider_timings: Mapping[str, JsonValue] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions that the provider reported with this answer."""


@dataclass(slots=True)
class CallTrace:
    """What becomes known about a call while it runs: the facts of aborted calls carry it too."""

    on_first_byte: Callable[[], None]
    """Called once, when the first part of the answer arrives; the runner's limits change then."""
    provider_call_id: str | None = None
    """The provider's own name of the call, set as soon as it is known."""
    http_status: int | None = None
    region_observed: str | None = None
    """Where the call ran, as seen from inside the provider; left ``None`` when nothing says it."""
    answering: bool = False

    def first_byte(self) -> None:
        """Report the first part of the answer; repetitions are ignored."""
        if not self.answering:
            self.answering = True
            self.on_first_byte()


class EndpointError(Exception):
    """A call that gave no answer.

    ``not_ready`` means that the endpoint does not take calls just now (refused connection, 303, 425, 429, 503):
    the call is not counted as an attempt and the executor waits at the endpoint's gate. Everything else uses up
    one attempt; ``info.retryable`` says whether another one makes sense.
    """

    def __init__(
        self,
        info: ErrorInfo,
        *,
        http_status: int | None = None,
        retry_after_s: float | None = None,
        not_ready: bool = False,
    ) -> None:
        super().__init__(info.message)
        self.info = info
        self.http_status = http_status
        self.retry_after_s = retry_after_s
        self.not_ready = not_ready


class Endpoint(Protocol):
    """Where the executors of one region send their calls. Safe for concurrent calls."""

    @property
    def provider(self) -> str:
        """Who serves the models, for receipts: ``openai``, ``modal``."""
        ...

    @property
    def reports_first_byte(self) -> bool:
        """Whether calls report their first byte; where not, only limits on the whole attempt apply."""
        ...

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of the client side, for receipts."""
        ...

    async def call(self, request: ModelRequest, trace: CallTrace) -> ModelAnswer:
        """Ask the model once.

        When the awaiting task is cancelled the call is aborted at the provider before the cancellation goes on;
        that is shielded and bounded to a few seconds, and does nothing else first: the provider charges until then.

        Raises:
            EndpointError: There is no answer; nothing else is raised on purpose.
        """
        ...

    async def close(self) -> None:
        """Release connections; calls that still run are aborted."""
        ...
