"""How vLLM is asked, over a stand-in for the package: it exists in the container's image only."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from modal_deployment.engine import (
    EngineBrokenError,
    Generation,
    GenerationFailedError,
    Piece,
    RequestRefusedError,
    Sampling,
)
from modal_deployment.vllm_engine import VllmEngine, VllmNames, given


class DeadError(Exception):
    """The engine's process is gone."""


class FailedError(Exception):
    """One request failed."""


class Tokenizer:
    """Turns messages into ids and counts how often."""

    def __init__(self) -> None:
        self.applied: list[tuple[Any, dict[str, Any]]] = []

    def apply_chat_template(self, messages: Any, **options: Any) -> list[int]:
        self.applied.append((messages, options))
        return [1, 2, 3]


class Engine:
    """An engine that answers in two steps, or raises."""

    def __init__(self, error: Exception | None = None, metrics: object = None) -> None:
        self.error = error
        self.metrics = metrics
        self.asked: list[tuple[Any, Any, str]] = []
        self.aborted: list[str] = []

    async def generate(self, prompt: Any, parameters: Any, request_id: str) -> AsyncIterator[Any]:
        self.asked.append((prompt, parameters, request_id))
        if self.error is not None:
            raise self.error
        for text, ids, reason in (("Hel", [5], None), ("lo", [6, 7], "length")):
            completion = SimpleNamespace(text=text, token_ids=ids, finish_reason=reason)
            yield SimpleNamespace(outputs=[completion], prompt_token_ids=[1, 2, 3], metrics=self.metrics)

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)


GENERATION = Generation(
    request_id="e1/1", messages=({"role": "user", "content": "Hi"},), sampling=Sampling(temperature=0.0, max_tokens=3)
)


def engine_over(engine: Engine, tokenizer: Tokenizer | None = None) -> VllmEngine:
    """Our engine over the stand-in."""
    names = VllmNames(sampling=dict, dead=DeadError, failed=FailedError)
    return VllmEngine(engine, tokenizer or Tokenizer(), "abc", names)


async def test_pieces_carry_the_text_once_and_totals_of_tokens() -> None:
    pieces = [piece async for piece in engine_over(Engine()).generate(GENERATION)]
    assert pieces == [
        Piece(text="Hel", prompt_tokens=3, completion_tokens=1),
        Piece(text="lo", prompt_tokens=3, completion_tokens=3, finish_reason="length"),
    ]


async def test_the_chat_template_is_applied_once_and_by_the_tokenizer() -> None:
    engine, tokenizer = Engine(), Tokenizer()
    async for _ in engine_over(engine, tokenizer).generate(GENERATION):
        pass
    [(messages, options)] = tokenizer.applied
    assert messages == [{"role": "user", "content": "Hi"}]
    assert options == {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
    assert engine.asked == [({"prompt_token_ids": [1, 2, 3]}, {"temperature": 0.0, "max_tokens": 3}, "e1/1")]


async def test_waiting_inside_the_engine_is_reported_where_it_is_known() -> None:
    metrics = SimpleNamespace(queued_ts=10.0, scheduled_ts=10.5)
    pieces = [piece async for piece in engine_over(Engine(metrics=metrics)).generate(GENERATION)]
    assert [piece.queued_s for piece in pieces] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (DeadError("gone"), EngineBrokenError),
        (FailedError("this one"), GenerationFailedError),
        (ValueError("prompt too long"), RequestRefusedError),
        (TypeError("lone surrogate"), RequestRefusedError),
    ],
)
async def test_errors_are_classed_by_what_the_caller_can_do(raised: Exception, becomes: type[Exception]) -> None:
    with pytest.raises(becomes, match=str(raised)):
        async for _ in engine_over(Engine(raised)).generate(GENERATION):
            pass


async def test_an_abort_reaches_the_engine() -> None:
    engine = Engine()
    await engine_over(engine).abort("e1/1")
    assert engine.aborted == ["e1/1"]


def test_an_answer_is_not_limited_to_vllms_sixteen_tokens_unless_the_job_says_so() -> None:
    assert given(Sampling()) == {"max_tokens": None}
    assert given(Sampling(seed=1, stop=("a",))) == {"seed": 1, "stop": ["a"], "max_tokens": None}
