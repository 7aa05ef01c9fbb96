"""``broker`` and ``dead-letters``: for whoever operates a running installation."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from parallax.errors import InvalidInputError
from parallax_cli.broker import broker_bus, required_broker_url
from parallax_cli.connect import Target
from parallax_cli.console import stderr, stdout
from parallax_cli.exits import guarded
from parallax_cli.logs import log_nothing
from parallax_cli.options import AsJson
from parallax_cli.tables import letters_table
from parallax_cli.text import printable

if TYPE_CHECKING:
    from parallax.bus.amqp import AmqpBus
    from parallax.bus.letters import DeadLetter

T = TypeVar("T")

broker = typer.Typer(help="Prepare the message broker.", no_args_is_help=True, rich_markup_mode=None)
dead_letters = typer.Typer(
    help="Look after messages that nobody could handle.", no_args_is_help=True, rich_markup_mode=None
)

LetterIds = Annotated[list[str], typer.Argument(help="Ids, or at least their first 8 characters.", show_default=False)]


@broker.callback()
def broker_group() -> None:
    """Prepare the message broker at PARALLAX_AMQP_URL."""


@broker.command()
@guarded
def setup(
    *,
    management: Annotated[
        str | None, typer.Option(help="Address of the broker's management API; port 15672 of its host when left out.")
    ] = None,
) -> None:
    """Declare the queues and set the policies: delivery limits, dead-lettering, retention of the stream."""
    from parallax.bus.amqp.bus import parse_url  # noqa: PLC0415 - only who speaks AMQP waits for its library
    from parallax.bus.policies import set_up  # noqa: PLC0415

    target = Target()
    environment = target.environment
    url = required_broker_url(environment)
    log_nothing()

    async def prepare() -> str:
        async with broker_bus(url, environment, regions=tuple(target.catalog().regions)) as bus:
            await bus.declare()
        namespace = environment.get("PARALLAX_NAMESPACE") or "parallax"
        applied = await set_up(parse_url(url), namespace, management_url=management)
        return f"queues declared; policies {', '.join(applied.policies)} set by {applied.way}"

    stdout().print(asyncio.run(prepare()), soft_wrap=True)


@dead_letters.command("list")
@guarded
def list_letters(*, as_json: AsJson = False) -> None:
    """List dead letters, oldest first within each queue. While this runs nobody else sees them."""
    from parallax.bus import deadletters  # noqa: PLC0415 - as above

    page = _with_bus(deadletters.list_letters)
    if as_json:
        typer.echo(json.dumps([_document(letter) for letter in page.letters], ensure_ascii=True))
    elif page.letters:
        stdout().print(letters_table(page.letters))
    else:
        stdout().print("there are no dead letters")
    if not page.complete:
        stderr().print(f"only the oldest {len(page.letters)} are listed: there are more", soft_wrap=True)


@dead_letters.command("show")
@guarded
def show_letter(
    letter_id: Annotated[str, typer.Argument(help="Id, or at least its first 8 characters.", show_default=False)],
    *,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter: where it came from, why it died, and its body."""
    from parallax.bus import deadletters  # noqa: PLC0415 - as above

    letter = _with_bus(lambda bus: deadletters.find_letter(bus, letter_id))
    document = _document(letter)
    if as_json:
        typer.echo(json.dumps(document, ensure_ascii=True))
        return
    for name, value in document.items():
        stdout().print(f"{name}: {printable(str(value))}", soft_wrap=True)


@dead_letters.command("replay")
@guarded
def replay(letter_ids: LetterIds) -> None:
    """Send letters back to the queues they were taken from."""
    from parallax.bus import deadletters  # noqa: PLC0415 - as above

    settled = _with_bus(lambda bus: deadletters.replay_letters(bus, letter_ids))
    stdout().print(f"{settled} sent back", soft_wrap=True)


@dead_letters.command("drop")
@guarded
def drop(
    letter_ids: LetterIds,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; they are gone for good.")] = False,
) -> None:
    """Remove letters for good."""
    from parallax.bus import deadletters  # noqa: PLC0415 - as above

    if not yes and not typer.confirm(f"remove {len(letter_ids)} dead letters for good?", default=False):
        raise InvalidInputError("nothing was dropped")
    settled = _with_bus(lambda bus: deadletters.drop_letters(bus, letter_ids))
    stdout().print(f"{settled} dropped", soft_wrap=True)


def _with_bus(work: "Callable[[AmqpBus], Awaitable[T]]") -> T:
    environment = Target().environment
    url = required_broker_url(environment)
    log_nothing()

    async def run() -> T:
        async with broker_bus(url, environment) as bus:
            return await work(bus)

    return asyncio.run(run())


def _document(letter: "DeadLetter") -> dict[str, object]:
    return {
        "id": letter.id,
        "kept_in": letter.kept_in,
        "queue": letter.queue,
        "key": letter.key,
        "reason": letter.reason,
        "dead_at": letter.dead_at,
        "headers": {name: str(value) for name, value in letter.headers.items()},
        "body": letter.body.decode("utf-8", "replace"),
    }
