"""The app itself: one definition, deployed once per region.

Modal imports this module again in every container, so everything chosen when the app was deployed comes from the
plan in the image's environment. Classes are at global scope because Modal finds them by name.
"""

import importlib
import os
import time
from typing import Any, Final

import modal
import modal.experimental

from modal_deployment.answering import Document, Where, answer, broken
from modal_deployment.engine import EngineBrokenError
from modal_deployment.gateway import call
from modal_deployment.plan import PLAN_VARIABLE, ModelPlan, RegionPlan
from modal_deployment.vllm_engine import WEIGHTS_DIRECTORY, VllmEngine, fetch_weights
from modal_deployment.web import create_web, registry

PLAN: Final = RegionPlan.from_environment(os.environ)
PLAN_ENV: Final = {PLAN_VARIABLE: PLAN.to_json()}

CUDA_IMAGE: Final = "nvidia/cuda:12.9.0-devel-ubuntu22.04"
VLLM_VERSION: Final = "0.21.0"
STARLETTE_VERSION: Final = "1.10.0"
COMPILED_DIRECTORY: Final = "/root/.cache/vllm"
"""Where vLLM keeps compiled kernels: on a Volume they are compiled once, not at every cold start."""
GATEWAY_INPUTS: Final = 200
"""Requests one web container waits for; each is an idle connection, so the bound is memory, not CPU."""
WEIGHTS_TIMEOUT_S: Final = 3600

app = modal.App(PLAN.app)
weights = modal.Volume.from_name(f"{PLAN.app}-weights", create_if_missing=True)
compiled = modal.Volume.from_name(f"{PLAN.app}-compiled", create_if_missing=True)
hugging_face = modal.Secret.from_name("parallax-huggingface", required_keys=["HF_TOKEN"])

gpu_image = (
    modal.Image.from_registry(CUDA_IMAGE, add_python="3.12")
    .entrypoint([])
    .uv_pip_install(f"vllm=={VLLM_VERSION}", f"starlette=={STARLETTE_VERSION}")
    .env({"HF_XET_HIGH_PERFORMANCE": "1", "VLLM_NO_USAGE_STATS": "1", **PLAN_ENV})
    .add_local_python_source("modal_deployment")
)
cpu_image = (
    modal.Image.debian_slim(python_version="3.12")
    .uv_pip_install(f"starlette=={STARLETTE_VERSION}", "huggingface-hub[hf-xet]")
    .env(PLAN_ENV)
    .add_local_python_source("modal_deployment")
)


@app.cls(
    image=gpu_image,
    gpu=PLAN.gpu,
    region=PLAN.modal_region,
    volumes={WEIGHTS_DIRECTORY: weights, COMPILED_DIRECTORY: compiled},
    secrets=[hugging_face],
    max_containers=PLAN.max_containers,
    scaledown_window=PLAN.scaledown_window_s,
    startup_timeout=PLAN.startup_timeout_s,
    timeout=PLAN.timeout_s,
    retries=0,
    enable_memory_snapshot=PLAN.snapshot != "off",
    experimental_options={"enable_gpu_snapshot": True} if PLAN.snapshot == "gpu" else {},
    include_source=False,
)
@modal.concurrent(max_inputs=PLAN.max_inputs)
class Inference:
    """One model on one GPU. Retries belong to the executor, which knows the job's limits."""

    model: str = modal.parameter()

    @modal.enter(snap=PLAN.snapshot != "off")
    async def prepare(self) -> None:
        """What a snapshot may hold: the imported libraries, or the loaded engine, asleep."""
        self._engine: VllmEngine | None = None
        if PLAN.snapshot == "memory":
            importlib.import_module("vllm.v1.engine.async_llm")
        if PLAN.snapshot == "gpu":
            self._engine = await VllmEngine.load(self._plan(), max_inputs=PLAN.max_inputs, sleep_mode=True)
            await self._engine.sleep()

    @modal.enter(snap=False)
    async def start(self) -> None:
        """Load the engine, or wake the one that came with the snapshot."""
        if self._engine is None:
            self._engine = await VllmEngine.load(self._plan(), max_inputs=PLAN.max_inputs, sleep_mode=False)
        else:
            await self._engine.wake()

    @modal.exit()
    def stop(self) -> None:
        """End the engine's process with the container."""
        if self._engine is not None:
            self._engine.close()

    @modal.method()
    async def generate(self, request: Document) -> Document:
        """Answer one request. Cancelling the call cancels this task alone, which aborts its request in the engine."""
        assert self._engine is not None
        where = Where.observed(os.environ)
        try:
            return await answer(self._engine, request, model=self._plan(), where=where, monotonic=time.monotonic)
        except EngineBrokenError as error:
            modal.experimental.stop_fetching_inputs()
            return broken(str(error))

    def _plan(self) -> ModelPlan:
        plan = PLAN.model(self.model)
        if plan is None:
            raise ValueError(f"model {self.model!r} is not served in region {PLAN.region!r}")
        return plan


@app.function(image=cpu_image, region=PLAN.modal_region, retries=0, max_containers=1, include_source=False)
def describe() -> Document:
    """What the app serves and where its containers run, for ``modal_deployment.verify``."""
    return registry(PLAN, Where.observed(os.environ))


@app.function(
    image=cpu_image,
    region=PLAN.modal_region,
    volumes={WEIGHTS_DIRECTORY: weights},
    secrets=[hugging_face],
    timeout=WEIGHTS_TIMEOUT_S,
    retries=0,
    max_containers=1,
    include_source=False,
)
def download_weights() -> dict[str, str]:
    """Fill the Volume before the first GPU starts, and answer with each model's commit."""
    found = {model.name: fetch_weights(model).name for model in PLAN.models}
    weights.commit()
    return found


async def _ask(model: ModelPlan, request: Document) -> Document:
    instance: Any = Inference(model=model.name)  # type: ignore[call-arg] # modal makes the constructor
    return await call(instance.generate, request)


@app.function(
    image=cpu_image,
    region=PLAN.modal_region,
    timeout=PLAN.timeout_s,
    max_containers=PLAN.max_containers,
    include_source=False,
)
@modal.concurrent(max_inputs=GATEWAY_INPUTS)
@modal.asgi_app(requires_proxy_auth=True)
def web() -> Any:
    """The OpenAI-compatible endpoint and ``/models``; Modal's proxy turns away whoever has no proxy token."""
    return create_web(PLAN, Where.observed(os.environ), _ask)
