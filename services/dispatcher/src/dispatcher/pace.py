"""How fast batches are published."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast batches are published."""

    chunk: int = 256
    """Messages published together: what the bus sends in one piece."""
    direct: int = 100
    """Tasks of one batch that may be ahead of another job's in a region; a batch of more is fed."""
