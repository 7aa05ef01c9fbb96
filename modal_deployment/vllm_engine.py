"""vLLM's asynchronous engine, in process. It exists in the container's image only, so it is imported late."""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from inspect import isawaitable
from pathlib import Path
from typing import Any, Final

from modal_deployment.engine import (
    EngineBrokenError,
    Generation,
    GenerationFailedError,
    Piece,
    RequestRefusedError,
    Sampling,
)
from modal_deployment.plan import ModelPlan

WEIGHTS_DIRECTORY: Final = "/weights"
"""Where the Volume with the weights is mounted."""
GPU_MEMORY_SHARE: Final = 0.9
"""vLLM's own default; the container has the GPU to itself."""
_WARM_UP_TOKENS: Final = 8


def fetch_weights(model: ModelPlan) -> Path:
    """Download what is not in the Volume yet; the folder is named after the commit."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - in the image only

    # The original PyTorch checkpoints beside the safetensors files would double the download.
    ignored = ["*.pt", "*.pth", "*.bin", "original/*"]
    found = snapshot_download(
        model.upstream, revision=model.revision, cache_dir=WEIGHTS_DIRECTORY, ignore_patterns=ignored
    )
    return Path(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmNames:
    """What of the package is needed once the engine runs."""

    sampling: Callable[..., Any]
    """Makes sampling parameters that ask for every piece of text once, as soon as it is there."""
    dead: type[Exception]
    failed: type[Exception]

    @classmethod
    def imported(cls) -> "VllmNames":
        """The real ones."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams  # noqa: PLC0415 - in the image only
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError  # noqa: PLC0415 - in the image only

        sampling = partial(SamplingParams, output_kind=RequestOutputKind.DELTA)
        return cls(sampling=sampling, dead=EngineDeadError, failed=EngineGenerateError)


class VllmEngine:
    """One model in one container; requests are batched continuously by the engine."""

    def __init__(self, engine: Any, tokenizer: Any, revision: str, vllm: VllmNames) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._revision = revision
        self._vllm = vllm

    @classmethod
    async def load(cls, model: ModelPlan, *, max_inputs: int, sleep_mode: bool) -> "VllmEngine":
        """Load a model, downloading its weights when the Volume lacks them, and warm it up."""
        from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415 - in the image only
        from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415 - in the image only

        weights = fetch_weights(model)
        engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=str(weights),
                served_model_name=[model.name],
                max_model_len=model.max_model_len,
                max_num_seqs=max_inputs,
                gpu_memory_utilization=GPU_MEMORY_SHARE,
                enable_sleep_mode=sleep_mode,
                # Models ship sampling defaults; a job's parameters, or vLLM's neutral ones, shall decide instead.
                generation_config="vllm",
            )
        )
        tokenizer = engine.get_tokenizer()
        if isawaitable(tokenizer):  # in some releases
            tokenizer = await tokenizer
        loaded = cls(engine, tokenizer, weights.name, VllmNames.imported())
        await loaded._warm_up()
        return loaded

    @property
    def revision(self) -> str:
        """The commit of the weights: the name of the folder that was loaded."""
        return self._revision

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of the software that generates."""
        return {package: version(package) for package in ("vllm", "transformers", "torch")}

    async def generate(self, generation: Generation) -> AsyncIterator[Piece]:
        """Generate, one piece per step of the engine that touched this request.

        Raises:
            RequestRefusedError: The prompt does not fit, or a parameter is out of the engine's range.
            GenerationFailedError: The engine gave this request up.
            EngineBrokenError: The engine process died.
        """
        completion_tokens = 0
        try:
            parameters = self._vllm.sampling(**given(generation.sampling))
            # Token ids, because vLLM would put a second begin-of-text token before a rendered text.
            prompt = {"prompt_token_ids": self._apply_template(generation)}
            async for output in self._engine.generate(prompt, parameters, generation.request_id):
                completion = output.outputs[0]
                completion_tokens += len(completion.token_ids)
                yield Piece(
                    text=completion.text,
                    prompt_tokens=len(output.prompt_token_ids or ()),
                    completion_tokens=completion_tokens,
                    finish_reason=completion.finish_reason,
                    queued_s=_queued_s(output.metrics),
                )
        except self._vllm.dead as error:
            raise EngineBrokenError(str(error)) from error
        except self._vllm.failed as error:
            raise GenerationFailedError(str(error)) from error
        except (ValueError, TypeError) as error:
            raise RequestRefusedError("invalid_request", str(error)) from error

    async def abort(self, request_id: str) -> None:
        """Free the request's place in the batch."""
        await self._engine.abort(request_id)

    async def sleep(self) -> None:
        """Give the GPU's memory back before a snapshot is taken; the weights move to main memory."""
        await self._engine.sleep(level=1)

    async def wake(self) -> None:
        """Take the GPU again after a snapshot was restored."""
        await self._engine.wake_up()

    def close(self) -> None:
        """End the engine's process."""
        self._engine.shutdown()

    def _apply_template(self, generation: Generation) -> list[int]:
        ids: list[int] = self._tokenizer.apply_chat_template(
            [dict(message) for message in generation.messages],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        return ids

    async def _warm_up(self) -> None:
        """Answer once, so that kernels are compiled before the container takes requests."""
        generation = Generation(
            request_id=f"warm-up-{time.time_ns()}",
            messages=({"role": "user", "content": "Hello"},),
            sampling=Sampling(temperature=0.0, max_tokens=_WARM_UP_TOKENS),
        )
        async for _ in self.generate(generation):
            pass


def given(sampling: Sampling) -> dict[str, Any]:
    """The sampling parameters that were given; unlike the API of OpenAI, vLLM limits answers to 16 tokens by itself."""
    parameters: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "stop": None if sampling.stop is None else list(sampling.stop),
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    chosen = {name: value for name, value in parameters.items() if value is not None}
    return chosen | {"max_tokens": sampling.max_tokens}


def _queued_s(metrics: Any) -> float | None:
    """How long the request waited for its first step; engines may be run without statistics."""
    queued, scheduled = getattr(metrics, "queued_ts", 0.0), getattr(metrics, "scheduled_ts", 0.0)
    return scheduled - queued if queued and scheduled else None
