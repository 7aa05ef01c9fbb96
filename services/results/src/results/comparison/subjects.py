"""What is compared with what: cells, their answers, and the pairs of cells that a comparison is about."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final, NamedTuple

from parallax.contracts.comparison import Across
from parallax.contracts.rates import Outcome

NO_TEXT: Final = frozenset({Outcome.REFUSED_BY_FIELD, Outcome.REFUSED_BY_FILTER, Outcome.EMPTY})
"""Answers that say nothing, whatever stands in their text. A refusal in words keeps its words: the rule that found it
is a heuristic, and must not decide whether there is a difference."""


class CellKey(NamedTuple):
    """One model in one region of one job."""

    job_id: str
    model_id: str
    region: str


class Answer(NamedTuple):
    """One execution that has ended."""

    sample: int
    outcome: Outcome
    text: str
    seed: int | None = None
    cut_off: bool = False
    """Ended by the limit of tokens, also when it counts as a refusal."""
    chars: int = 0
    """Length of the whole answer, of which ``text`` may be the beginning."""


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """A question with every answer to it that is compared."""

    index: int
    id: str
    cells: Mapping[CellKey, Sequence[Answer]]
    tags: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    expected: str | None = None


class Pair(NamedTuple):
    """Two cells."""

    a: CellKey
    b: CellKey
    control: bool = False
    """Whether both are the same model under the same conditions, so that any difference is the provider's own."""


@dataclass(frozen=True, slots=True)
class Repeats:
    """Which ids of a job's models are the same model with the same parameters, apart from the seed."""

    same: Mapping[str, object] = field(default_factory=dict)

    def control(self, a: CellKey, b: CellKey) -> bool:
        """Whether two cells repeat each other."""
        identity = self.same.get(a.model_id)
        alike = identity is not None and identity == self.same.get(b.model_id)
        return alike and (a.job_id, a.region) == (b.job_id, b.region) and a.model_id != b.model_id


def pairs_of(cells: Sequence[CellKey], across: Across, repeats: Repeats, against: str | None = None) -> list[Pair]:
    """The pairs that a comparison is about, controls first. The order of the cells decides which one is ``a``."""
    found: list[Pair] = []
    for a, b in combinations(cells, 2):
        if repeats.control(a, b):
            found.append(Pair(a, b, control=True))
        elif _differ_only(across, a, b) and (against is None or against in (_part(across, a), _part(across, b))):
            found.append(Pair(a, b))
    return sorted(found, key=lambda pair: not pair.control)


def _differ_only(across: Across, a: CellKey, b: CellKey) -> bool:
    match across:
        case Across.REGION:
            return a.job_id == b.job_id and a.model_id == b.model_id
        case Across.MODEL:
            return a.job_id == b.job_id and a.region == b.region
        case Across.JOB | Across.PROMPT:
            return a.job_id != b.job_id and a[1:] == b[1:]


def _part(across: Across, cell: CellKey) -> str:
    match across:
        case Across.REGION:
            return cell.region
        case Across.MODEL:
            return cell.model_id
        case Across.JOB | Across.PROMPT:
            return cell.job_id


def groups_of(pairs: Iterable[Pair]) -> list[list[Pair]]:
    """The pairs whose cells hang together. Words are weighted within a group, controls in groups of their own."""
    groups: list[tuple[bool, set[CellKey], list[Pair]]] = []
    for pair in pairs:
        touched = [g for g in groups if g[0] == pair.control and g[1] & {pair.a, pair.b}]
        merged = (pair.control, {pair.a, pair.b}.union(*(g[1] for g in touched)), [*(p for g in touched for p in g[2])])
        merged[2].append(pair)
        groups = [g for g in groups if g not in touched] + [merged]
    return [group[2] for group in groups]
