"""What the API may answer instead of a result, as errors classed by what the caller can do."""

from parallax.errors import InvalidInputError


class NotFoundError(InvalidInputError):
    """There is no such job or execution."""


class ConflictError(InvalidInputError):
    """The id belongs to another job, or the job is not in a state that allows this."""


class AccessDeniedError(InvalidInputError):
    """The API asks for a key, or the key does not allow this."""
