"""``python -m modal_deployment.verify`` against a control plane on loopback."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from modal_deployment.answering import Where, answer
from modal_deployment.choice import plan_region
from modal_deployment.plan import RegionPlan
from modal_deployment.web import registry
from parallax.catalog import load_catalog
from tests.fakes.engines import ScriptedEngine
from tests.fakes.modal_control_plane import TOKEN_ID, TOKEN_SECRET, ControlPlane, control_plane

ROOT = Path(__file__).parents[2]
CATALOG = load_catalog(ROOT / "deploy" / "catalog.yaml")
OBSERVED = {"us": "us-east-1", "eu": "europe-west4", "apac": "asia-southeast1"}


def deploy(plane: ControlPlane, plan: RegionPlan, observed: str, web_url: str) -> None:
    """What one region's app would answer."""
    where = Where(region=observed, cloud="gcp", container="ta-1")

    async def describe(_: str, __: Any) -> object:
        return registry(plan, where)

    async def generate(name: str, request: Any) -> object:
        model = plan.model(name)
        assert model is not None
        engine = ScriptedEngine(revision=model.revision)
        return await answer(engine, request, model=model, where=where, monotonic=asyncio.get_running_loop().time)

    plane.deploy(plan.app, "Inference", generate)
    plane.deploy_function(plan.app, "describe", describe)
    plane.deploy_function(plan.app, "web", describe, web_url=web_url)


@asynccontextmanager
async def web_endpoints(documents: dict[str, Any], *, guarded: bool) -> AsyncIterator[str]:
    """The web endpoints of the apps behind Modal's proxy, which lets nobody through without a token."""

    async def models(request: web.Request) -> web.Response:
        if guarded and (request.headers.get("Modal-Key"), request.headers.get("Modal-Secret")) != ("wk-1", "ws-1"):
            return web.Response(status=401)
        return web.json_response(documents[request.match_info["app"]])

    application = web.Application()
    application.add_routes([web.get("/{app}/models", models)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def verify(url: str, *arguments: str) -> tuple[int | None, str, str]:
    """Run the check as a person does."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "modal_deployment.verify", *arguments),
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith(("PARALLAX_", "MODAL_"))},
            "MODAL_SERVER_URL": url,
            "MODAL_TOKEN_ID": TOKEN_ID,
            "MODAL_TOKEN_SECRET": TOKEN_SECRET,
            "MODAL_PROXY_TOKEN_ID": "wk-1",
            "MODAL_PROXY_TOKEN_SECRET": "ws-1",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120):
        said, complained = await process.communicate()
    return process.returncode, said.decode(), complained.decode()


async def verified(observed: dict[str, str], *arguments: str, guarded: bool = True) -> tuple[int | None, str, str]:
    """Deploy the catalog's three regions and check them."""
    plans = [plan_region(CATALOG, region) for region in CATALOG.regions]
    places = {plan.region: Where(region=observed[plan.region], cloud="gcp", container=None) for plan in plans}
    documents = {plan.app: registry(plan, places[plan.region]) for plan in plans}
    plane = ControlPlane()
    async with web_endpoints(documents, guarded=guarded) as web_url, control_plane(plane) as url:
        for plan in plans:
            deploy(plane, plan, observed[plan.region], f"{web_url}/{plan.app}")
        return await verify(url, *arguments)


async def test_three_regions_that_are_what_the_catalog_says() -> None:
    code, said, complained = await verified(OBSERVED, "--generate")
    assert (code, complained) == (0, "")
    assert sorted(said.splitlines()) == [
        "parallax-apac: runs in asia-southeast1, serves llama3.2-1b, qwen2.5-1.5b",
        "parallax-eu: runs in europe-west4, serves llama3.2-1b, qwen2.5-1.5b",
        "parallax-us: runs in us-east-1, serves llama3.2-1b, qwen2.5-1.5b",
    ]


async def test_a_region_that_runs_elsewhere_and_an_open_web_endpoint_are_told() -> None:
    code, _, complained = await verified({**OBSERVED, "eu": "us-east-1"}, guarded=False)
    assert code == 1
    assert "parallax-eu: runs in 'us-east-1', which is not known to lie in 'eu'" in complained
    assert "answers without a token: 200" in complained


async def test_regions_that_are_not_deployed_are_told_one_by_one() -> None:
    async with control_plane(ControlPlane()) as url:
        code, _, complained = await verify(url)
    assert code == 1
    assert [line.split(":")[0] for line in complained.splitlines() if "cannot be asked" in line] == [
        "parallax-us",
        "parallax-eu",
        "parallax-apac",
    ]
