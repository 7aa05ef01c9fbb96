"""The real ``modal deploy`` of the three files, against a fake that takes deployments."""

import asyncio
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from modal_deployment.plan import PLAN_VARIABLE
from tests.fakes.modal_deployments import Deployments, deployments

ROOT = Path(__file__).parents[2]
APPS = {"us": ("parallax-us", "us"), "eu": ("parallax-eu", "eu"), "apac": ("parallax-apac", "ap")}


async def deploy(region: str, url: str, **changes: str) -> tuple[int, str]:
    """Deploy one file as a person does; gives the exit code and what was printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "modal", "deploy", f"modal_deployment/modal_hf_{region}.py"),
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith(("PARALLAX_", "MODAL_"))},
            "MODAL_SERVER_URL": url,
            "MODAL_TOKEN_ID": "ak-test",
            "MODAL_TOKEN_SECRET": "as-test",
            **changes,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(120):
        printed, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, printed.decode()


def baked_plan(service: Deployments, image_id: str) -> dict[str, Any]:
    """What the image tells its containers about the app."""
    lines = service.image_lines(image_id).splitlines()
    [line] = [line for line in lines if line.startswith(f"ENV {PLAN_VARIABLE}=")]
    [document] = shlex.split(line.removeprefix(f"ENV {PLAN_VARIABLE}="))
    plan: dict[str, Any] = json.loads(document)
    return plan


@pytest.fixture(scope="module")
def deployed() -> Deployments:
    """The three apps, each deployed from its file."""

    async def run() -> Deployments:
        async with deployments() as (service, url):
            for region in APPS:
                code, printed = await deploy(region, url)
                assert code == 0, printed
            return service

    return asyncio.run(run())


def test_three_apps_and_no_fourth(deployed: Deployments) -> None:
    assert set(deployed.published) == {app for app, _ in APPS.values()}
    for functions in deployed.published.values():
        assert sorted(functions) == ["Inference.*", "describe", "download_weights", "web"]


@pytest.mark.parametrize(("app", "modal_region"), APPS.values())
def test_everything_of_an_app_runs_in_its_region(deployed: Deployments, app: str, modal_region: str) -> None:
    for function in deployed.functions[app].values():
        assert list(function.scheduler_placement.regions) == [modal_region]


@pytest.mark.parametrize("app", [app for app, _ in APPS.values()])
def test_the_class_has_the_resources_and_limits_of_the_catalog(deployed: Deployments, app: str) -> None:
    function = deployed.functions[app]["Inference.*"]
    assert (function.resources.gpu_config.gpu_type, function.resources.gpu_config.count) == ("L4", 1)
    assert function.max_concurrent_inputs == 32
    assert function.autoscaler_settings.max_containers == 2
    assert function.autoscaler_settings.scaledown_window == 300
    assert (function.timeout_secs, function.startup_timeout_secs) == (1200, 900)
    assert function.retry_policy.retries == 0, "the executor owns retries"
    assert not function.checkpointing_enabled
    assert [deployed.names[secret] for secret in function.secret_ids] == ["parallax-huggingface"]
    assert {mount.mount_path: deployed.names[mount.volume_id] for mount in function.volume_mounts} == {
        "/weights": f"{app}-weights",
        "/root/.cache/vllm": f"{app}-compiled",
    }


@pytest.mark.parametrize("app", [app for app, _ in APPS.values()])
def test_the_class_is_found_by_its_name_and_takes_the_model_as_its_parameter(deployed: Deployments, app: str) -> None:
    function = deployed.functions[app]["Inference.*"]
    assert function.module_name == "modal_deployment.definition"
    assert [parameter.name for parameter in function.class_parameter_info.schema] == ["model"]
    assert list(function.method_definitions) == ["generate"]


@pytest.mark.parametrize("app", [app for app, _ in APPS.values()])
def test_only_the_gateway_is_on_the_web_and_it_asks_for_a_proxy_token(deployed: Deployments, app: str) -> None:
    on_the_web = {name for name, function in deployed.functions[app].items() if function.webhook_config.type}
    assert on_the_web == {"web"}
    assert deployed.functions[app]["web"].webhook_config.requires_proxy_auth


@pytest.mark.parametrize(("region", "app"), [(region, app) for region, (app, _) in APPS.items()])
def test_containers_know_what_was_chosen_and_hold_exactly_two_models(
    deployed: Deployments, region: str, app: str
) -> None:
    for function in deployed.functions[app].values():
        plan = baked_plan(deployed, function.image_id)
        assert (plan["region"], plan["app"]) == (region, app)
        assert [model["name"] for model in plan["models"]] == ["llama3.2-1b", "qwen2.5-1.5b"]
    assert "mistral" not in json.dumps([baked_plan(deployed, f.image_id) for f in deployed.functions[app].values()])


async def test_a_catalog_that_does_not_fit_is_refused_before_anything_is_deployed(tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(
        "regions: {us: {name: US, endpoint: 'modal://parallax-us/Other', modal_region: us}}\n"
        "models: {tiny: {upstream: org/tiny, regions: [us]}}\n"
    )
    async with deployments() as (service, url):
        code, printed = await deploy("us", url, PARALLAX_CATALOG=str(catalog))
    assert code != 0
    assert "nothing would call the app" in " ".join(printed.replace("│", " ").split())
    assert service.published == {}


async def test_snapshots_are_taken_when_the_catalog_asks_for_them(tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(
        "regions: {us: {name: US, endpoint: 'modal://parallax-us/Inference', modal_region: us}}\n"
        "models: {tiny: {upstream: org/tiny, regions: [us], modal: {snapshot: gpu}}}\n"
    )
    async with deployments() as (service, url):
        code, printed = await deploy("us", url, PARALLAX_CATALOG=str(catalog))
    assert code == 0, printed
    function = service.functions["parallax-us"]["Inference.*"]
    assert function.checkpointing_enabled
    assert function.experimental_options["enable_gpu_snapshot"] == "True"
