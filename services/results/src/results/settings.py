"""What can be set about the writer of results."""

from collections.abc import Mapping
from dataclasses import dataclass

from parallax.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one writer."""

    grace_s: float = 10.0
    """How long facts and messages at hand may still be written when the writer stops; the rest goes back."""


def from_environment(env: Mapping[str, str]) -> Settings:
    """The settings that the environment asks for, and the default of every other one.

    Raises:
        InvalidInputError: ``PARALLAX_GRACE_S`` is not a positive number.
    """
    given = env.get("PARALLAX_GRACE_S", str(Settings().grace_s))
    try:
        grace_s = float(given)
    except ValueError:
        grace_s = 0.0
    if not 0 < grace_s < float("inf"):
        raise InvalidInputError(f"PARALLAX_GRACE_S: {given!r} is not valid; expected a number above 0")
    return Settings(grace_s=grace_s)
