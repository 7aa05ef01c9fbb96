"""What people do with dead letters: list them, look at one, replay or drop some. See :class:`DeadLetter` for the id."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from parallax.bus.amqp import AmqpBus
from parallax.bus.letters import DeadLetter, Verdict
from parallax.errors import InvalidInputError

MIN_PREFIX: Final = 8
"""Characters of an id that are enough to name a letter, if no other begins with them."""
PAGE_LETTERS: Final = 1_000
"""Letters listed in one go: more than anybody reads."""
PAGE_BYTES: Final = 64 * 1024 * 1024
"""Bytes of their bodies: a single one may have 16 MB, and all of a page are in memory at once."""


@dataclass(frozen=True, slots=True)
class Page:
    """The oldest dead letters; ``complete`` says whether there are no others."""

    letters: tuple[DeadLetter, ...]
    complete: bool


async def list_letters(bus: AmqpBus, *, most: int = PAGE_LETTERS, most_bytes: int = PAGE_BYTES) -> Page:
    """The oldest dead letters of each queue, up to a number and a size. While this runs nobody else sees them."""
    found: list[DeadLetter] = []
    size_bytes = 0

    def note(letter: DeadLetter) -> Verdict:
        nonlocal size_bytes
        size_bytes += len(letter.body)
        if len(found) == most or (found and size_bytes > most_bytes):
            return Verdict.STOP
        found.append(letter)
        return Verdict.KEEP

    complete = await bus.visit_dead_letters(note)
    return Page(tuple(found), complete)


async def find_letter(bus: AmqpBus, name: str) -> DeadLetter:
    """The letter with this id, or the only one whose id begins so.

    Raises:
        InvalidInputError: There is none, or more than one.
    """
    (chosen,) = await _resolve(bus, [name])
    found: list[DeadLetter] = []

    def note(letter: DeadLetter) -> Verdict:
        if letter.id != chosen:
            return Verdict.KEEP
        found.append(letter)
        return Verdict.STOP

    await bus.visit_dead_letters(note)
    if not found:
        raise InvalidInputError(f"dead letter {chosen} has just gone")
    return found[0]


async def replay_letters(bus: AmqpBus, names: Collection[str]) -> int:
    """Send letters back to the queues they were taken from; a handler that still cannot take them rejects them again.

    Returns how many there were.

    Raises:
        InvalidInputError: One of the names fits no letter, or several; then nothing is replayed. Or a letter does
            not tell where it came from.
    """
    return await _settle(bus, names, Verdict.REPLAY)


async def drop_letters(bus: AmqpBus, names: Collection[str]) -> int:
    """Remove letters for good; returns how many there were.

    Raises:
        InvalidInputError: One of the names fits no letter, or several; then nothing is dropped.
    """
    return await _settle(bus, names, Verdict.DROP)


async def _settle(bus: AmqpBus, names: Collection[str], verdict: Verdict) -> int:
    chosen = await _resolve(bus, names)
    settled = 0

    def decide(letter: DeadLetter) -> Verdict:
        nonlocal settled
        if letter.id not in chosen:
            return Verdict.KEEP
        settled += 1
        return verdict

    await bus.visit_dead_letters(decide)
    return settled


async def _resolve(bus: AmqpBus, names: Collection[str]) -> set[str]:
    """The ids that names stand for; keeps nothing but ids in memory."""
    ids: set[str] = set()

    def note(letter: DeadLetter) -> Verdict:
        ids.add(letter.id)
        return Verdict.KEEP

    complete = await bus.visit_dead_letters(note)
    return {_one_of(ids, name, complete=complete) for name in names}


def _one_of(ids: Collection[str], name: str, *, complete: bool) -> str:
    if name in ids:
        return name
    similar = [each for each in ids if len(name) >= MIN_PREFIX and each.startswith(name)]
    if not similar:
        where = "" if complete else f" among the oldest {len(ids)}, and there are others"
        raise InvalidInputError(
            f"there is no dead letter {name!r}{where} (an id, or at least its first {MIN_PREFIX} characters)"
        )
    if len(similar) > 1:
        raise InvalidInputError(f"{len(similar)} dead letters begin with {name!r}: give more of the id")
    return similar[0]
