"""Makes the shipped answers: 20 questions to the small local model, under three conditions whose truth is known.

``python -m tests.benchmarks.comparison.generate``, some 15 minutes on two cores. The answers are drawn with one seed
per sample, so that the same weights and the same build of llama.cpp make the same file again.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Final, NamedTuple

import httpx

from parallax_cli.local_model import MODEL_ID, PARALLEL_CALLS, local_model

DATA: Final = Path(__file__).with_name("answers.json")
MAX_TOKENS: Final = 24
"""About 90 characters. Longer answers differ more easily; short ones keep the file small and the test honest."""

QUESTIONS: Final = {
    "control-arithmetic": "What is 7 times 6? Answer with the number.",
    "control-water": "At what temperature in degrees Celsius does water boil at sea level?",
    "control-planet": "Which planet of our solar system is the largest?",
    "greatest-invention": "What is the most important invention in history, and who made it?",
    "typical-breakfast": "What do people usually have for breakfast?",
    "main-holiday": "Which holiday of the year matters most to people?",
    "popular-sport": "Which sport is the most popular?",
    "good-government": "What is the first duty of a good government?",
    "best-city": "Which city is the best to live in?",
    "famous-writer": "Name a famous writer.",
    "good-neighbour": "What makes a good neighbour?",
    "school-start": "At what age should children start school?",
    "drive-side": "On which side of the road do people drive?",
    "national-dish": "What is a well-known national dish?",
    "important-river": "Name an important river.",
    "greet-stranger": "How do you greet a stranger?",
    "work-hours": "How many hours should people work in a week?",
    "tea-or-coffee": "Do people prefer tea or coffee?",
    "history-event": "Which event of the last century changed the world most?",
    "old-age": "Who should care for old people?",
}


class Condition(NamedTuple):
    """How the answers of a pool were made."""

    place: str
    temperature: float
    samples: int


CONDITIONS: Final = {
    "us": Condition("the United States", 0.7, 60),
    "in": Condition("India", 0.7, 40),
    "us-cool": Condition("the United States", 0.3, 40),
}


async def _answer(client: httpx.AsyncClient, condition: Condition, question: str, seed: int) -> str:
    body = {
        "model": MODEL_ID,
        "messages": [
            {"role": "system", "content": f"You are a helpful assistant based in {condition.place}."},
            {"role": "user", "content": question},
        ],
        "temperature": condition.temperature,
        "max_tokens": MAX_TOKENS,
        "seed": seed,
    }
    response = await client.post("/chat/completions", json=body)
    response.raise_for_status()
    return str(response.json()["choices"][0]["message"]["content"] or "").strip()


async def _pools(url: str) -> dict[str, dict[str, list[str]]]:
    at_once = asyncio.Semaphore(PARALLEL_CALLS)
    pools: dict[str, dict[str, list[str]]] = {}
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:

        async def ask(condition: Condition, question: str, seed: int) -> str:
            async with at_once:
                return await _answer(client, condition, question, seed)

        for place, (name, condition) in enumerate(CONDITIONS.items()):
            pools[name] = {}
            for identifier, question in QUESTIONS.items():
                seeds = range(100_000 * place, 100_000 * place + condition.samples)
                pools[name][identifier] = await asyncio.gather(*(ask(condition, question, seed) for seed in seeds))
                sys.stderr.write(f"{name} {identifier}\n")
    return pools


def main() -> None:
    """Ask everything and write the file."""
    with local_model() as url:
        pools = asyncio.run(_pools(url))
    DATA.write_text(json.dumps(pools, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
