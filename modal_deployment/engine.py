"""What the apps need of an inference engine, whichever it is."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol


class RequestRefusedError(Exception):
    """A request that no repetition will make right, such as a prompt longer than the model's context."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class GenerationFailedError(Exception):
    """One request failed for a reason of the engine's own; asking again may help."""


class EngineBrokenError(Exception):
    """The engine will not answer any more: its container has to be replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling parameters; what is ``None`` is left to the engine's default."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One request: messages, not text, because the chat template is the engine's to apply, once."""

    request_id: str
    messages: tuple[Mapping[str, str], ...]
    sampling: Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What was generated since the piece before; token counts are totals so far."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None = None
    """Set on the last piece: ``stop`` or ``length``."""
    queued_s: float | None = None
    """Time the request waited inside the engine, where it says."""


class Engine(Protocol):
    """A loaded model that answers many requests at once."""

    @property
    def revision(self) -> str | None:
        """The commit of the weights that are loaded, observed rather than requested."""
        ...

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of the software that generates."""
        ...

    def generate(self, generation: Generation) -> AsyncIterator[Piece]:
        """Generate until the end of the answer.

        Raises:
            RequestRefusedError: The request can never be answered.
            GenerationFailedError: This request failed.
            EngineBrokenError: The engine is dead.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """Stop generating for one request; its neighbours go on. Unknown and finished requests are ignored."""
        ...
