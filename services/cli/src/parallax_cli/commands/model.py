"""``local-model`` and ``mock-endpoint``: endpoints by themselves, one that answers and one that misbehaves."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from parallax_cli.console import stdout
from parallax_cli.exits import guarded
from parallax_cli.local_model import MODEL_ID
from parallax_cli.local_model import local_model as serving

Host = Annotated[str, typer.Option(help="Address to listen on; nobody is asked for a key there.")]


@guarded
def local_model(
    *, host: Host = "127.0.0.1", port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 0
) -> None:
    """Serve the small local model, OpenAI-compatible, until Ctrl-C or SIGTERM."""
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before the server's threads start, which inherit it
    with serving(port, host=host) as url:
        stdout().print(f"{MODEL_ID} answers at {url}", soft_wrap=True)
        signal.sigwait(signals)


@guarded
def mock_endpoint(
    *,
    script: Annotated[Path | None, typer.Option(help="YAML file that says which calls are answered how.")] = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")] = 9001,
) -> None:
    """Serve an OpenAI-compatible endpoint without a model, that can be slow, fail, stall or vanish on demand.

    What it was asked is found at /__log.
    """
    from parallax_cli.mock_endpoint import run  # noqa: PLC0415 - brings a web server along
    from parallax_cli.mock_script import Script, load_script  # noqa: PLC0415

    run(load_script(script) if script is not None else Script(), host=host, port=port)
