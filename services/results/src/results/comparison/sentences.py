"""Verdicts in plain words. A quiet result is "no difference found", never "the same"."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from parallax.contracts.comparison import (
    Accuracy,
    Across,
    Cell,
    Kind,
    PairComparison,
    QuestionComparison,
    Verdict,
)
from parallax.contracts.rates import Rate
from results.comparison.choices import OTHER
from results.comparison.intervals import fisher
from results.comparison.subjects import Pair

REPEATS: Final = {
    Across.REGION: "repeats of one region",
    Across.MODEL: "repeats of one model",
    Across.JOB: "repeats within one job",
    Across.PROMPT: "repeats of one prompt",
}
MUCH_CUT: Final = 0.2
MUCH_MISSING: Final = 0.1
MUCH_OTHER: Final = 0.2
SCRIPT_LEVEL: Final = 0.01
"""Several scripts of many pairs are looked at, and another script is never a matter of a few answers."""


def percent(share: float) -> str:
    """A share for people, with a decimal where it matters."""
    value = 100 * share
    return f"{value:.1f} %" if 0 < abs(value) < 1.95 else f"{value:.0f} %"


def p_text(p: float) -> str:
    """A p for people."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.095 else f"p = {p:.2f}"


def names_of(pair: Pair, across: Across) -> tuple[str, str, str]:
    """What the two sides are called, and the pair as a whole."""
    a, b = pair.a, pair.b
    if pair.control:
        return a.model_id, b.model_id, f"control in {a.region}: {a.model_id} - {b.model_id}"
    match across:
        case Across.REGION:
            return a.region, b.region, f"{a.model_id}: {a.region} - {b.region}"
        case Across.MODEL:
            return a.model_id, b.model_id, f"{a.region}: {a.model_id} - {b.model_id}"
        case Across.JOB | Across.PROMPT:
            return a.job_id, b.job_id, f"{a.model_id} in {a.region}: {a.job_id} - {b.job_id}"


def pair_sentences(pair: PairComparison, names: tuple[str, str], across: Across) -> tuple[str, ...]:
    """The verdict, then everything that has to be said with it."""
    told = [_verdict(pair, names, across), *_details(pair, names)]
    if pair.accuracy is not None:
        told.append(_accuracy(pair.accuracy, names))
    if pair.same_seed is not None:
        same = pair.same_seed
        told.append(f"With the same seed both sides gave the same answer {same.count} of {same.total} times.")
    return tuple(told)


def _verdict(pair: PairComparison, names: tuple[str, str], across: Across) -> str:
    first, second = names
    noise = "" if pair.noise is None else f" ({REPEATS[across]}: up to {percent(pair.noise)})"
    size = "" if pair.separation is None else f"separation {percent(pair.separation)}{noise}"
    match pair.verdict:
        case None:
            return f"Not finished, so sizes only: {first} against {second}: {size or 'nothing to compare yet'}."
        case Verdict.DIFFERS:
            assert pair.p is not None
            return f"{first} and {second} differ, {p_text(pair.p)}: {size}."
        case Verdict.NO_DIFFERENCE_FOUND:
            assert pair.p is not None
            return f"No difference found between {first} and {second}, {p_text(pair.p)}: {size}.{_visible(pair)}"
        case Verdict.CANNOT_TELL:
            return _cannot_tell(pair, names)


def _visible(pair: PairComparison) -> str:
    if pair.visible is None:
        return " Every answer reads alike."
    twice = f"; with {2 * pair.samples} samples, {percent(pair.visible / 2)}" if pair.samples else ""
    return f" A separation of {percent(pair.visible)} or more would have been found four times of five{twice}."


def _cannot_tell(pair: PairComparison, names: tuple[str, str]) -> str:
    if pair.between is None:
        return f"Cannot tell: no question has answers of both {names[0]} and {names[1]}."
    count = "one answer" if pair.samples == 1 else f"{pair.samples} answers"
    alike = f"Answers of {names[0]} and {names[1]} are {percent(1 - pair.between)} alike"
    needed = f"; {pair.samples_to_tell} samples a cell would tell" if pair.samples_to_tell else ""
    return f"Cannot tell: {count} a cell. {alike}{needed}."


def _details(pair: PairComparison, names: tuple[str, str]) -> list[str]:
    told: list[str] = []
    a, b = pair.a.outcomes, pair.b.outcomes
    if Kind.REFUSALS in pair.kinds:
        told.append(f"Refused or empty: {_against(a.silent, b.silent, names)}.")
    if Kind.CUT_OFF in pair.kinds:
        told.append(f"Cut off: {_against(a.cut, b.cut, names)}.")
    if pair.verdict is not Verdict.DIFFERS:
        return told
    if not pair.questions_different:
        return [*told, "No single question stands out: what differs is spread over them, or needs more samples."]
    total = len(pair.questions)
    rest = total - pair.questions_different - pair.questions_unknown
    line = f"Different on {pair.questions_different} of {total} questions"
    if rest:
        line += f"; no difference found on {rest}"
    if pair.questions_unknown:
        line += f"; on {pair.questions_unknown} the samples do not suffice to tell"
    tags = _by_tag(pair.questions)
    return [*told, line + "." + (f" By tag: {tags}." if tags else "")]


def _by_tag(questions: Sequence[QuestionComparison]) -> str:
    every = Counter(tag for question in questions for tag in question.tags)
    found = Counter(tag for question in questions if question.verdict is Verdict.DIFFERS for tag in question.tags)
    return ", ".join(f"{tag} {found[tag]} of {count}" for tag, count in sorted(every.items())[:8])


def _against(a: Rate, b: Rate, names: tuple[str, str]) -> str:
    return f"{a.count} of {a.total} in {names[0]}, {b.count} of {b.total} in {names[1]}"


def _accuracy(found: Accuracy, names: tuple[str, str]) -> str:
    points = f"{100 * found.difference:+.0f} points (95 %: {100 * found.low:+.0f} to {100 * found.high:+.0f})"
    a, b = percent(found.a.share), percent(found.b.share)
    return f"Expected answers: {a} in {names[0]}, {b} in {names[1]}; {points} over {found.questions} questions."


def script_sentence(a: Counter[str], b: Counter[str], names: tuple[str, str]) -> str | None:
    """Whether one side answers in another script; wording then differs by itself."""
    total_a, total_b = a.total(), b.total()
    unlike = [
        script
        for script in sorted(a.keys() | b.keys())
        if fisher(a[script], total_a, b[script], total_b) <= SCRIPT_LEVEL
    ]
    if not unlike:
        return None
    script = min(unlike, key=lambda one: (a[one] + b[one], one))  # the rarer one is the news
    shares = f"{script} {percent(a[script] / total_a)} in {names[0]}, {percent(b[script] / total_b)} in {names[1]}"
    return f"Answers in another script: {shares}. Wording differs for that reason alone."


def missing_sentence(a: Cell, b: Cell, names: tuple[str, str]) -> str | None:
    """Whether more is missing than can be passed over, or more on one side than chance explains."""
    lost_a, lost_b = a.outcomes.missing, b.outcomes.missing
    p = fisher(lost_a.count, lost_a.total, lost_b.count, lost_b.total)
    told = f"Missing answers: {_against(lost_a, lost_b, names)}"
    if p < 0.05:
        return f"{told}, more than chance explains ({p_text(p)}): what is missing may be what differs."
    if max(lost_a.share, lost_b.share) > MUCH_MISSING:
        return f"{told}: what is missing may be what differs."
    return None


def cell_warnings(cells: Sequence[Cell], *, several_jobs: bool) -> list[str]:
    """Cells that are cut off so often that their answers cannot be judged."""
    return [
        f"{_cell_name(cell, several_jobs=several_jobs)}: {percent(cell.outcomes.cut.share)} of the answers are cut "
        "off by the limit of tokens; raise max_tokens."
        for cell in cells
        if cell.outcomes.cut.share > MUCH_CUT
    ]


def repeated_warning(cell: Cell, samples: int, *, several_jobs: bool) -> str | None:
    """Whether the samples of a cell are word for word the same, and so are one answer."""
    if cell.within is None or cell.within > 0 or samples < 2:
        return None
    name = _cell_name(cell, several_jobs=several_jobs)
    return f"{name}: all samples of a question are alike, so they tell as much as one (temperature 0, or a cache)."


def _cell_name(cell: Cell, *, several_jobs: bool) -> str:
    return f"{cell.model_id} in {cell.region}" + (f" of {cell.job_id}" if several_jobs else "")


def question_sentence(question: QuestionComparison, names: tuple[str, str]) -> str:
    """What is said about one question."""
    a, b = question.a, question.b
    match question.verdict:
        case None:
            return "not judged before the end"
        case Verdict.CANNOT_TELL:
            return f"cannot tell with {a.answers} and {b.answers} answers"
        case Verdict.NO_DIFFERENCE_FOUND:
            seen = f"; would be seen from {percent(question.visible)}" if question.visible is not None else ""
            return f"no difference found{seen}"
        case Verdict.DIFFERS:
            return "; ".join([*_what_differs(question), *_what_is_said(question, names)])


def _what_differs(question: QuestionComparison) -> list[str]:
    a, b = question.a, question.b
    told: list[str] = []
    for kind in question.kinds:
        match kind:
            case Kind.WORDING:
                word = "choices" if question.closed else "wording"
                told.append(f"{word} {percent(question.separation or 0)} (noise up to {percent(question.noise or 0)})")
            case Kind.REFUSALS:
                silent_a, silent_b = a.refused + a.empty, b.refused + b.empty
                told.append(f"refused or empty {silent_a} of {a.answers} against {silent_b} of {b.answers}")
            case Kind.CUT_OFF:
                told.append(f"cut off {a.cut_off} of {a.answers} against {b.cut_off} of {b.answers}")
            case Kind.LENGTH:
                told.append(f"length, median {a.median_chars} against {b.median_chars} characters")
    return told


def _what_is_said(question: QuestionComparison, names: tuple[str, str]) -> list[str]:
    told = [
        f"{name} says: {', '.join(word.word for word in words)}"
        for name, words in zip(names, (question.words_a, question.words_b), strict=True)
        if words
    ]
    if question.choices:
        shares = [f"{one.choice} {percent(one.a.share)} against {percent(one.b.share)}" for one in question.choices]
        told.append(", ".join(shares))
        other = next((one for one in question.choices if one.choice == OTHER), None)
        if other is not None and max(other.a.share, other.b.share) > MUCH_OTHER:
            told.append("many answers name none of the choices")
    return told


def headlines(controls: Sequence[PairComparison], pairs: Sequence[PairComparison], *, final: bool) -> tuple[str, ...]:
    """The whole in a few sentences, controls first."""
    told: list[str] = []
    if not final:
        told.append(
            "Not finished: sizes are shown and verdicts are not. Looking early, and stopping at the first difference, "
            "finds too many."
        )
    if controls and final:
        told.append(_controls(controls))
    if pairs and final:
        counted = Counter(pair.verdict for pair in pairs)
        found = [f"{counted[Verdict.DIFFERS]} of {len(pairs)} pairs differ"]
        if counted[Verdict.NO_DIFFERENCE_FOUND]:
            found.append(f"no difference found in {counted[Verdict.NO_DIFFERENCE_FOUND]}")
        if counted[Verdict.CANNOT_TELL]:
            found.append(f"cannot tell in {counted[Verdict.CANNOT_TELL]}")
        told.append("; ".join(found) + ".")
    if not pairs:
        told.append("There is no pair to compare here.")
    return tuple(told)


def _controls(controls: Sequence[PairComparison]) -> str:
    found = sum(pair.questions_different for pair in controls)
    total = sum(len(pair.questions) for pair in controls)
    count = f"{len(controls)} repeat{'' if len(controls) == 1 else 's'} of the same model"
    if any(pair.verdict is Verdict.DIFFERS for pair in controls):
        largest = max(pair.separation or 0.0 for pair in controls)
        return (
            f"Controls: {count}, which DIFFER (on {found} of {total} questions): the provider itself is not stable "
            f"within the job. Differences of {percent(largest)} and less mean nothing here."
        )
    if all(pair.verdict is Verdict.CANNOT_TELL for pair in controls):
        return f"Controls: {count}; too few samples to tell whether the provider is stable."
    return f"Controls: {count}, no difference found (different on {found} of {total} questions)."
