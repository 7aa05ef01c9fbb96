"""What a comparison is asked for, and which cells, pairs and questions of which jobs that means."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from parallax.contracts.comparison import Across, Unmatched
from parallax.contracts.job import ModelSelection, Parameters
from parallax.contracts.model import read_document
from results.api.problems import ApiError, Kind, invalid_parameter, job_not_found
from results.api.queries import comparison, jobs
from results.api.queries.comparison import AskedHere, ComparedJob, Said
from results.comparison.subjects import Answer, AskedQuestion, CellKey, Pair, Repeats, pairs_of

MAX_PAIRS: Final = 200
"""Pairs of cells: a region or model more makes many more, and nobody reads them all."""
MAX_ANSWERS: Final = 120_000
"""Twice what takes about a minute."""
MAX_PAIR_QUESTIONS: Final = 20_000
"""Rows of the document; each takes about 1.3 kB."""
MAX_UNMATCHED: Final = 200
MAX_RETRIES: Final = 200
MANY_PARTS: Final = 5
"""From so many regions (or models) on only pairs with the first one are compared, unless all are asked for."""
ALL: Final = "all"


class Asked(NamedTuple):
    """What is asked for."""

    job_id: str
    across: Across = Across.REGION
    with_job_id: str | None = None
    against: str | None = None
    question: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    region: tuple[str, ...] = ()


class Prepared(NamedTuple):
    """What has to be read and compared."""

    asked: Asked
    cells: tuple[CellKey, ...]
    pairs: tuple[Pair, ...]
    against: str | None
    families: tuple[tuple[str, ...], ...]
    """Each job with those that repeat parts of it."""
    questions: tuple[AskedHere, ...]
    final: bool
    unmatched: tuple[Unmatched, ...]
    warnings: tuple[str, ...]


async def prepared(connection: AsyncConnection, asked: Asked) -> Prepared:
    """Everything about a comparison but its answers.

    Raises:
        ApiError: A job is not known or has no answers yet, a parameter fits nothing, or there is too much to compare.
    """
    compared = [await _job(connection, job_id) for job_id in (asked.job_id, asked.with_job_id) if job_id is not None]
    families = tuple([await _family(connection, one.job_id) for one in compared])
    cells = tuple(cell for one in compared for cell in cells_of(one, asked))
    against = _against(asked, cells)
    repeats = repeats_of(compared[0]) if len(compared) == 1 else Repeats()
    pairs = tuple(pairs_of(cells, asked.across, repeats, against))
    final = not await comparison.unfinished(connection, [job_id for family in families for job_id in family])
    asked_here = [await comparison.questions(connection, one) for one in compared]
    chosen, unmatched = _questions(asked, compared, asked_here, pairs, final=final)
    _check_size(chosen, pairs)
    return Prepared(
        asked, cells, pairs, against, families, chosen, final, unmatched[:MAX_UNMATCHED], parameter_warnings(compared)
    )


async def _job(connection: AsyncConnection, job_id: str) -> ComparedJob:
    found = await comparison.job(connection, job_id)
    if found is None:
        raise job_not_found(job_id)
    if found.plan is None:
        raise ApiError(Kind.NOTHING_TO_COMPARE, f"job {job_id!r} was not accepted yet")
    return found


async def _family(connection: AsyncConnection, job_id: str) -> tuple[str, ...]:
    found = await jobs.with_retries(connection, job_id, MAX_RETRIES + 1)
    if len(found) > MAX_RETRIES:
        raise ApiError(Kind.TOO_LARGE, f"more than {MAX_RETRIES} jobs repeat parts of {job_id!r}")
    return found


def cells_of(one: ComparedJob, asked: Asked) -> list[CellKey]:
    """The cells of a job that the filters keep, in the order of its plan."""
    models = one.plan.models if one.plan else ()
    return [
        CellKey(one.job_id, model.model_id, region)
        for model in models
        for region in model.regions
        if (not asked.model or model.model_id in asked.model) and (not asked.region or region in asked.region)
    ]


def _against(asked: Asked, cells: Sequence[CellKey]) -> str | None:
    if asked.across not in {Across.REGION, Across.MODEL}:
        return None
    parts = list(dict.fromkeys(c.region if asked.across is Across.REGION else c.model_id for c in cells))
    if asked.against is None:
        return parts[0] if len(parts) >= MANY_PARTS else None
    if asked.against == ALL:
        return None
    if asked.against not in parts:
        raise invalid_parameter("against", f"the job has no {asked.across.value} of this name", ", ".join(parts)[:500])
    return asked.against


def repeats_of(one: ComparedJob) -> Repeats:
    """Which models of a job repeat each other: the same model of the catalog, asked the same with the same parameters.

    The seed may differ, and should: with the same one an endpoint that honours it says the same again.
    """
    if "{model}" in (one.spec.get("system_prompt") or ""):
        return Repeats()
    return Repeats(
        {
            model.id: (model.catalog_name, parameters.model_copy(update={"seed": None}))
            for model, parameters in _models(one.spec)
        }
    )


def _models(spec: Mapping[str, Any]) -> Iterable[tuple[ModelSelection, Parameters]]:
    whole = read_document(Parameters, spec.get("parameters") or {})
    for document in spec.get("models") or ():
        model = read_document(ModelSelection, document)
        yield model, whole.merged_under(model.parameters)


def parameter_warnings(compared: Sequence[ComparedJob]) -> tuple[str, ...]:
    """What two jobs ask of a model in different ways; told first, because it may be all that differs."""
    if len(compared) < 2:
        return ()
    first, second = ({m.id: (m.catalog_name, p.model_dump()) for m, p in _models(one.spec)} for one in compared)
    told: list[str] = []
    for model in (name for name in first if name in second):
        (name_a, a), (name_b, b) = first[model], second[model]
        unlike = [f"{key} {a[key]} against {b[key]}" for key in a if key != "seed" and a[key] != b[key]]
        unlike += [f"model {name_a} against {name_b}"] if name_a != name_b else []
        if unlike:
            told.append(f"{model}: the jobs ask in different ways: {', '.join(unlike)}.")
    return tuple(told)


def _questions(
    asked: Asked,
    compared: Sequence[ComparedJob],
    found: Sequence[Sequence[AskedHere]],
    pairs: Sequence[Pair],
    *,
    final: bool,
) -> tuple[tuple[AskedHere, ...], tuple[Unmatched, ...]]:
    """The questions that every job has and that are complete; and what of the jobs has no partner."""
    chosen = [q for q in found[0] if not asked.question or q.id in asked.question]
    known = {question.id for question in found[0]}
    missing = [name for name in asked.question if name not in known]
    if missing:
        raise invalid_parameter("question", f"the job has asked no question {missing[0]!r} yet")
    unmatched: list[Unmatched] = []
    if len(compared) == 2:
        other = {question.id: question for question in found[1]}
        sides = ((compared[0].job_id, found[0], other), (compared[1].job_id, found[1], known))
        unmatched += [
            Unmatched(job_id=job_id, kind="question", name=question.id, reason="the other job did not ask it")
            for job_id, questions, there in sides
            for question in questions
            if question.id not in there and (not asked.question or question.id in asked.question)
        ]
        matched = {cell for pair in pairs for cell in (pair.a, pair.b)}
        unmatched += [
            Unmatched(job_id=one.job_id, kind="cell", name=f"{cell.model_id} in {cell.region}", reason="not there")
            for one in compared
            for cell in cells_of(one, asked)
            if cell not in matched
        ]
        chosen = [q for q in chosen if q.id in other and (final or other[q.id].complete)]
    return tuple(q for q in chosen if final or q.complete), tuple(unmatched)


def _check_size(questions: Sequence[AskedHere], pairs: Sequence[Pair]) -> None:
    advice = "; name some with `question`, `model`, `region` or `against`"
    if len(pairs) > MAX_PAIRS:
        raise ApiError(Kind.TOO_LARGE, f"{len(pairs)} pairs are more than {MAX_PAIRS}{advice}")
    if len(pairs) * len(questions) > MAX_PAIR_QUESTIONS:
        detail = f"{len(pairs)} pairs in {len(questions)} questions are more than {MAX_PAIR_QUESTIONS} comparisons"
        raise ApiError(Kind.TOO_LARGE, detail + advice)
    answers = sum(question.recorded for question in questions)
    if answers > MAX_ANSWERS:
        raise ApiError(Kind.TOO_LARGE, f"{answers} answers are more than {MAX_ANSWERS}{advice}")


def question_of(
    question: AskedHere, across: Across, said: Mapping[CellKey, Sequence[Said]]
) -> tuple[AskedQuestion, bool]:
    """A question with its answers, and whether some were left out because of their prompts.

    Between two jobs the same prompt is compared with itself (by its hash), or across prompts, another one.
    """
    kept: dict[CellKey, Sequence[Answer]] = {}
    left_out = False
    prompts = {cell: {one.prompt for one in some if one.prompt is not None} for cell, some in said.items()}
    for cell, some in said.items():
        partners = [prompts[other] for other in said if other[1:] == cell[1:] and other.job_id != cell.job_id]
        if across in {Across.JOB, Across.PROMPT} and partners and prompts[cell] and partners[0]:
            alike = prompts[cell] == partners[0]
            if alike == (across is Across.PROMPT):
                left_out = True
                continue
        kept[cell] = [one.answer for one in some]
    whole = AskedQuestion(question.number, question.id, kept, question.tags, question.choices, question.expected)
    return whole, left_out
