"""What is wrong with a document, and where."""

from parallax.contracts.model import Strict


class Problem(Strict):
    """One thing that is wrong with a document: where (RFC 6901 pointer), what, and what is allowed."""

    pointer: str
    message: str
    allowed: str | None = None
