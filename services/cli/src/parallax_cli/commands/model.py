"""``local-model``: the embedded model server by itself, for a stack of separate processes."""

import signal
from typing import Annotated

import typer

from parallax_cli.console import stdout
from parallax_cli.exits import guarded
from parallax_cli.local_model import MODEL_ID
from parallax_cli.local_model import local_model as serving


@guarded
def local_model(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
) -> None:
    """Serve the small local model, OpenAI-compatible, until Ctrl-C or SIGTERM."""
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before the server's threads start, which inherit it
    with serving(port) as url:
        stdout().print(f"{MODEL_ID} answers at {url}", soft_wrap=True)
        signal.sigwait(signals)
