"""Checks what was deployed: ``python -m modal_deployment.verify [--generate]``.

Asks each region's app what it serves and where its containers run, and compares that with the catalog. With
``MODAL_PROXY_TOKEN_ID`` and ``MODAL_PROXY_TOKEN_SECRET`` the web endpoint is checked too, with ``--generate`` every
model has to answer, which starts its GPU.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx
import modal

from modal_deployment.answering import VERSION, Document
from modal_deployment.choice import CLASS_NAME, catalog_path, plan_region
from modal_deployment.plan import ModelPlan, RegionPlan
from parallax.catalog import load_catalog
from parallax.errors import InvalidInputError

DESCRIBE_TIMEOUT_S: Final = 300.0
"""A CPU container starts in seconds, after its image was pulled."""
HTTP_TIMEOUT_S: Final = 120.0
EXIT_OK: Final = 0
EXIT_PROBLEMS: Final = 1
EXIT_INVALID: Final = 2

PLACES: Final[Mapping[str, tuple[str, ...]]] = {
    "us": ("us",),
    "eu": ("eu",),
    "ap": ("ap", "asia", "australia"),
}
"""How the names of the clouds' regions begin, in each of Modal's broad regions."""


def description_problems(plan: RegionPlan, document: object) -> list[str]:
    """What an app says about itself that is not what the catalog says."""
    if not isinstance(document, Mapping):
        return [f"describes itself with {type(document).__name__}, not with a document"]
    expected = {"app": plan.app, "region": plan.region, "modal_region": plan.modal_region}
    problems = [
        f"{name} is {document.get(name)!r}, not {value!r}"
        for name, value in expected.items()
        if document.get(name) != value
    ]
    served = document.get("models")
    wanted = [{"name": m.name, "upstream": m.upstream, "revision": m.revision} for m in plan.models]
    if served != wanted:
        problems.append(f"serves {served}, not {wanted}; deploy it again")
    return problems + place_problems(plan, document.get("region_observed"))


def place_problems(plan: RegionPlan, observed: object) -> list[str]:
    """Whether a container runs where its region says, as far as it can see that itself."""
    if not isinstance(observed, str) or not observed:
        return ["does not see where it runs (MODAL_REGION is not set)"]
    beginnings = PLACES.get(plan.modal_region, (plan.modal_region,))
    if not observed.startswith(beginnings):
        return [f"runs in {observed!r}, which is not known to lie in {plan.modal_region!r}"]
    return []


def answer_problems(plan: RegionPlan, model: ModelPlan, answer: object) -> list[str]:
    """What is wrong with the answer of a model."""
    if not isinstance(answer, Mapping):
        return [f"answers with {type(answer).__name__}, not with a document"]
    if answer.get("error") is not None:
        return [f"answers with an error: {answer['error']}"]
    problems = [] if isinstance(answer.get("text"), str) else ["answers without a text"]
    if model.revision is not None and answer.get("revision") != model.revision:
        problems.append(f"answers from revision {answer.get('revision')!r}, not {model.revision!r}")
    return problems + place_problems(plan, answer.get("region"))


async def verify(
    plans: Sequence[RegionPlan], *, client: modal.Client, env: Mapping[str, str], generate: bool
) -> list[str]:
    """Every problem of every region; empty when what is deployed is what the catalog says."""
    found = await asyncio.gather(*(_verify_region(plan, client, env, generate=generate) for plan in plans))
    return [problem for problems in found for problem in problems]


async def _verify_region(
    plan: RegionPlan, client: modal.Client, env: Mapping[str, str], *, generate: bool
) -> list[str]:
    try:
        async with asyncio.timeout(DESCRIBE_TIMEOUT_S):
            document: Any = await modal.Function.from_name(plan.app, "describe", client=client).remote.aio()
        problems = description_problems(plan, document)
        problems += await _web_problems(plan, client, env)
        if generate:
            for model in plan.models:
                answer = await _ask(plan, model, client)
                problems += [f"{model.name} {problem}" for problem in answer_problems(plan, model, answer)]
    except (modal.exception.Error, httpx.HTTPError, TimeoutError) as error:
        return [f"{plan.app}: cannot be asked: {type(error).__name__}: {error}"]
    print(f"{plan.app}: runs in {document.get('region_observed')}, serves {', '.join(m.name for m in plan.models)}")
    return [f"{plan.app}: {problem}" for problem in problems]


async def _web_problems(plan: RegionPlan, client: modal.Client, env: Mapping[str, str]) -> list[str]:
    """Whether the web endpoint says the same to whoever has a proxy token, and nothing to anybody else."""
    key, secret = env.get("MODAL_PROXY_TOKEN_ID"), env.get("MODAL_PROXY_TOKEN_SECRET")
    if not key or not secret:
        return []
    function: Any = modal.Function.from_name(plan.app, "web", client=client)
    url = f"{await function.get_web_url.aio()}/models"
    async with httpx.AsyncClient(timeout=HTTP_TIMEOUT_S, follow_redirects=True) as http:
        stranger = await http.get(url)
        known = await http.get(url, headers={"Modal-Key": key, "Modal-Secret": secret})
    problems = [] if stranger.status_code in (401, 403) else [f"{url} answers without a token: {stranger.status_code}"]
    if known.status_code != 200:
        return [*problems, f"{url} answers with {known.status_code}"]
    return problems + [f"web endpoint: {problem}" for problem in description_problems(plan, known.json())]


async def _ask(plan: RegionPlan, model: ModelPlan, client: modal.Client) -> object:
    request: Document = {
        "version": VERSION,
        "request_id": "verify",
        "model": model.name,
        "upstream": model.upstream,
        "revision": model.revision,
        "messages": [{"role": "user", "content": "Say hello."}],
        "parameters": {"temperature": 0.0, "max_tokens": 1},
    }
    instance: Any = modal.Cls.from_name(plan.app, CLASS_NAME, client=client)(model=model.name)
    async with asyncio.timeout(plan.startup_timeout_s + plan.timeout_s):
        answer: object = await instance.generate.remote.aio(request)
    return answer


async def main(arguments: Sequence[str], env: Mapping[str, str]) -> int:
    """Verify every region of the catalog; 0 when all is well."""
    parser = argparse.ArgumentParser(prog="python -m modal_deployment.verify", description=__doc__)
    parser.add_argument("--generate", action="store_true", help="ask every model for one token; starts its GPU")
    options = parser.parse_args(arguments)
    try:
        catalog = load_catalog(catalog_path())
        plans = [plan_region(catalog, region) for region in catalog.regions]
    except InvalidInputError as error:
        print(error, file=sys.stderr)
        return EXIT_INVALID
    client = await modal.Client.from_env.aio()
    problems = await verify(plans, client=client, env=env, generate=options.generate)
    for problem in problems:
        print(problem, file=sys.stderr)
    return EXIT_PROBLEMS if problems else EXIT_OK


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:], os.environ)))
