"""Errors classed by the action they call for. Each service maps them to an acknowledgement in one place."""

from collections.abc import Sequence

from parallax.contracts.messages import Message, Problem


class ParallaxError(Exception):
    """Any error that Parallax raises on purpose."""


class InvalidInputError(ParallaxError):
    """Somebody gave us something that cannot be right: tell them what, where and how to mend it (exit code 2)."""


class InvalidJobError(InvalidInputError):
    """A job that breaks rules; ``problems`` lists every one of them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{p.pointer or '/'}: {p.message}" for p in problems))
        self.problems = tuple(problems)


class PoisonError(ParallaxError):
    """A message that no repetition will make right: dead-letter it."""


class UnavailableError(ParallaxError):
    """A server we need cannot be reached just now: wait and try again (exit code 4 at the command line)."""


class UnconfirmedError(UnavailableError):
    """A publish whose outcome is unknown: some of its messages may have been delivered, and none will be any more.

    A plain ``UnavailableError`` from a publish says that nothing was sent, so that repeating it is harmless. After this
    one only the receivers know what arrived: never repeat a message that must not be doubled.
    """


class StaleDeliveryError(ParallaxError):
    """The channel of a delivery is gone, so it can no longer be settled; the broker will deliver it again."""


class UnroutableError(ParallaxError):
    """The broker has no queue for a message: the topology is missing or the region does not exist.

    ``messages`` are those of the publish that no queue takes; every other message of it was delivered.
    """

    def __init__(self, what: str, messages: Sequence[Message] = ()) -> None:
        super().__init__(what)
        self.messages = tuple(messages)
