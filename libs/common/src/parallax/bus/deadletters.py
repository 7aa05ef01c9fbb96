"""What people do with dead letters: list them, look at one, replay or drop some. See :class:`DeadLetter` for the id."""

from collections.abc import Collection

from parallax.bus.amqp import AmqpBus
from parallax.bus.letters import DeadLetter, Verdict
from parallax.errors import InvalidInputError

MIN_PREFIX = 8
"""Characters of an id that are enough to name a letter, if no other begins with them."""


async def list_letters(bus: AmqpBus) -> list[DeadLetter]:
    """Every dead letter, oldest first within each queue. While this runs nobody else sees them."""
    found: list[DeadLetter] = []

    def note(letter: DeadLetter) -> Verdict:
        found.append(letter)
        return Verdict.KEEP

    await bus.visit_dead_letters(note)
    return found


async def find_letter(bus: AmqpBus, name: str) -> DeadLetter:
    """The letter with this id, or the only one whose id begins so.

    Raises:
        InvalidInputError: There is none, or more than one.
    """
    letters = await list_letters(bus)
    return _resolve(name, letters)


async def replay_letters(bus: AmqpBus, names: Collection[str]) -> list[DeadLetter]:
    """Send letters back to the queues they were taken from; a handler that still cannot take them rejects them again.

    Raises:
        InvalidInputError: One of the names fits no letter, or several; then nothing is replayed. Or a letter does
            not tell where it came from.
    """
    return await _settle(bus, names, Verdict.REPLAY)


async def drop_letters(bus: AmqpBus, names: Collection[str]) -> list[DeadLetter]:
    """Remove letters for good.

    Raises:
        InvalidInputError: One of the names fits no letter, or several; then nothing is dropped.
    """
    return await _settle(bus, names, Verdict.DROP)


async def _settle(bus: AmqpBus, names: Collection[str], verdict: Verdict) -> list[DeadLetter]:
    letters = await list_letters(bus)
    chosen = {_resolve(name, letters).id for name in names}
    settled: list[DeadLetter] = []

    def decide(letter: DeadLetter) -> Verdict:
        if letter.id not in chosen:
            return Verdict.KEEP
        settled.append(letter)
        return verdict

    await bus.visit_dead_letters(decide)
    return settled


def _resolve(name: str, letters: Collection[DeadLetter]) -> DeadLetter:
    exact = [letter for letter in letters if letter.id == name]
    similar = [letter for letter in letters if len(name) >= MIN_PREFIX and letter.id.startswith(name)]
    fitting = exact or similar
    if not fitting:
        raise InvalidInputError(
            f"there is no dead letter {name!r} (an id, or at least its first {MIN_PREFIX} characters)"
        )
    if len({letter.id for letter in fitting}) > 1:
        raise InvalidInputError(f"{len(fitting)} dead letters begin with {name!r}: give more of the id")
    return fitting[0]
