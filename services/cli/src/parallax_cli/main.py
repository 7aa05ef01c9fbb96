"""The ``parallax`` command: one line per subcommand."""

import importlib.metadata
from typing import Annotated

import typer

from parallax_cli.commands import broker, compare, files, jobs, keys, migrate, model, remote, results, run, up, warm

app = typer.Typer(
    name="parallax",
    help="Ask many language models the same questions from several regions, one question batch at a time.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    epilog=(
        "Exit codes: 0 done, 1 internal error, 2 invalid input, 3 finished below min_success_rate, "
        "4 cannot reach a needed server, 5 cancelled, 6 a difference was found (--fail-on-difference), 130 interrupted."
    ),
)


def _version(value: bool) -> None:  # noqa: FBT001 - the shape Typer asks for
    if value:
        typer.echo(f"parallax {importlib.metadata.version('parallax-cli')}")
        raise typer.Exit


@app.callback()
def main(
    *,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Ask many language models the same questions from several regions, one question batch at a time."""


app.command()(run.run)
app.command()(run.demo)
app.command()(run.resume)
app.command()(files.init)
app.command()(files.validate)
app.command()(jobs.jobs)
app.command()(jobs.show)
app.command()(results.results)
app.command()(results.matrix)
app.command()(compare.compare)
app.command()(compare.judge)
app.command()(jobs.cancel)
app.command()(jobs.retry)
app.command()(remote.submit)
app.command()(remote.watch)
app.command()(remote.regions)
app.command()(warm.warm)
app.command("local-model")(model.local_model)
app.command("mock-endpoint")(model.mock_endpoint)
app.add_typer(keys.keys, name="keys")
app.add_typer(broker.broker, name="broker")
app.add_typer(broker.dead_letters, name="dead-letters")
app.command()(up.up)
app.command()(migrate.migrate)
