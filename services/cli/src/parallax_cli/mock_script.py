"""The script of the mock endpoint: which calls are answered how."""

from pathlib import Path
from typing import Annotated, Final, Literal

import yaml
from pydantic import Field, ValidationError

from parallax.contracts.model import Strict
from parallax.errors import InvalidInputError

FOREVER_S: Final = 86_400.0

Seconds = Annotated[float, Field(ge=0, le=FOREVER_S, strict=False)]
Count = Annotated[int, Field(ge=0, le=100_000)]


class Step(Strict):
    """How one call is answered."""

    status: Annotated[int, Field(ge=200, le=599)] = 200
    message: str = "scripted error"
    """What an error says."""
    retry_after: str | None = None
    text: str | None = None
    """The answer; when absent, one that repeats the beginning of the question."""
    refusal: str | None = None
    finish_reason: str | None = "stop"
    delay_s: Seconds = 0.0
    """Before the first byte of the answer."""
    token_interval_s: Seconds = 0.0
    """Between the words of the answer."""
    stall_after: Count | None = None
    """Falls silent after so many words, and never ends."""
    drop_after: Count | None = None
    """Closes the connection after so many words."""
    garbage_after: Count | None = None
    """Sends what is no JSON after so many words."""
    fail_after: Count | None = None
    """Reports an error inside the stream after so many words."""
    pending: Count = 0
    """Answers 303 so many times: the result is found where ``Location`` points."""
    redirect_to: str | None = None
    """Where ``Location`` points instead of the result."""
    whole: bool = False
    """Sends one JSON document although a stream was asked for."""
    region: str | None = None
    """What the header ``X-Region`` says."""


class Rule(Strict):
    """Which calls are answered by which steps: the first rule that matches counts, its last step repeats."""

    model: str | None = None
    contains: str | None = None
    """Text that the prompt must contain."""
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]
    """The first step answers the first call of each (model, prompt), the second the second, and so on."""


class Script(Strict):
    """What the server does."""

    rules: tuple[Rule, ...] = ()
    default: Step = Step()
    models: tuple[str, ...] = ("mock",)
    """What ``GET /v1/models`` lists; any other name is answered too."""
    api_key: str | None = None
    cold_start_s: Seconds = 0.0
    """From the first call on, nothing is answered for so long."""
    cold_start: Literal["refuse", "hold"] = "refuse"
    """Whether calls during the cold start get status 503 or have to wait."""


def load_script(path: Path) -> Script:
    """A script from a YAML or JSON file.

    Raises:
        InvalidInputError: The file cannot be read or breaks a rule; one line per problem.
    """
    try:
        return Script.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {}, strict=False)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInputError(f"{path}: cannot be read: {error}") from error
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']}" for e in error.errors()]
        raise InvalidInputError("\n".join(lines)) from error
