"""The rows that the database keeps of a job's questions and chosen batches, as JSON ready to be inserted.

A large job is cut into pieces where it is checked, so that the process that inserts them neither builds nor encodes
anything of their size, and never sends more than one of them at a time.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from parallax.contracts.job import Barrier, JobSpec
from parallax.contracts.plan import ALL_REGIONS_LANE, Cell, JobPlan, batch_cells

PIECE_CHARS: Final = 256 * 1024
"""Rows of one statement: encoding and sending them takes a millisecond or two. One question alone may have more."""


@dataclass(frozen=True, slots=True)
class ChosenBatch:
    """A batch of a job that asks for a part of its matrix."""

    lane: str
    question_index: int
    cells: tuple[Cell, ...]


def question_rows(spec: JobSpec) -> Iterator[bytes]:
    """The questions, as lists of objects with ``question_index``, ``id``, ``text``, ``tags`` and ``metadata``."""
    return _pieces(
        {
            "question_index": index,
            "id": question.id,
            "text": question.text,
            "tags": question.tags,
            "metadata": question.metadata,
        }
        for index, question in enumerate(spec.questions)
    )


def chosen_rows(spec: JobSpec) -> Iterator[bytes]:
    """The chosen batches, as lists of objects with ``lane``, ``question_index`` and ``cells``; none for a whole job."""
    return _pieces(
        {"lane": batch.lane, "question_index": batch.question_index, "cells": batch.cells}
        for batch in chosen_batches(spec)
    )


def chosen_batches(spec: JobSpec) -> tuple[ChosenBatch, ...]:
    """The batches of a job that asks for a part of its matrix; none for a whole job."""
    if spec.only is None:
        return ()
    plan = JobPlan.of(spec)
    index_of = {question.id: index for index, question in enumerate(spec.questions)}
    chosen: dict[tuple[str, int], list[Cell]] = {}
    for ref in spec.only:
        lane = ALL_REGIONS_LANE if plan.barrier is Barrier.QUESTION else ref.region
        cell = Cell(ref.model_id, ref.region, ref.sample)
        chosen.setdefault((lane, index_of[ref.question_id]), []).append(cell)
    return tuple(
        ChosenBatch(lane, index, batch_cells(plan, lane, cells)) for (lane, index), cells in sorted(chosen.items())
    )


_compact: Final[Callable[[object], str]] = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _pieces(rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    piece: list[str] = []
    chars = 0
    for row in rows:
        written = _compact(row)
        if piece and chars + len(written) > PIECE_CHARS:
            yield _list(piece)
            piece, chars = [], 0
        piece.append(written)
        chars += len(written)
    if piece:
        yield _list(piece)


def _list(rows: list[str]) -> bytes:
    return f"[{','.join(rows)}]".encode()
