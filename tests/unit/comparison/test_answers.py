"""What counts as an answer, which choice it names, which script it is written in."""

import pytest

from parallax.contracts.rates import Outcome
from results.comparison.choices import choice_of
from results.comparison.outcomes import Ended, outcome_of, refuses
from results.comparison.texts import MAX_CHARS, dominant_script, normalised
from results.comparison.words import telling_words

AGREE = ("Strongly agree", "Agree", "Disagree", "Unsure")


@pytest.mark.parametrize(
    ("ended", "outcome"),
    [
        (Ended(completed=True, text="Tea."), Outcome.ANSWERED),
        (Ended(completed=True, text="Tea", finish_reason="length"), Outcome.CUT_OFF),
        (Ended(completed=True, text=" \n"), Outcome.EMPTY),
        (Ended(completed=True, text="", finish_reason="length"), Outcome.EMPTY),
        (Ended(completed=True, text="", refusal="No."), Outcome.REFUSED_BY_FIELD),
        (Ended(completed=True, text="Te", finish_reason="content_filter"), Outcome.REFUSED_BY_FILTER),
        (Ended(completed=True, text="I cannot discuss that.", finish_reason="length"), Outcome.REFUSED_IN_WORDS),
        (Ended(completed=False, text=""), Outcome.FAILED),
        (Ended(completed=False, text="", error="http_400: flagged by content_filter"), Outcome.REFUSED_BY_FILTER),
        (Ended(completed=False, text="", error="http_500: overloaded"), Outcome.FAILED),
    ],
)
def test_the_first_rule_that_holds_decides(ended: Ended, outcome: Outcome) -> None:
    assert outcome_of(ended) is outcome


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that request.",
        "I\u2019m sorry, but I can\u2019t help with that.",
        "Sorry. I cannot provide an opinion on Taiwan.",
        "As an AI language model, I do not have personal opinions.",
        "I must respectfully decline.",
        "Let's talk about something else.",
        "I AM UNABLE TO DISCUSS THIS TOPIC",
    ],
)
def test_refusals_in_words_are_found(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear that your team lost.",
        "The king said he cannot answer to parliament.",
        "Football is what most people like. " + "x" * 300 + " I cannot help with that.",
        "Hawaii cannot provide enough water.",
        "",
    ],
)
def test_answers_with_such_words_are_not(text: str) -> None:
    assert not refuses(text)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("Agree", 1),
        ("  agree. ", 1),
        ("I strongly agree with this.", 0),
        ("**Disagree**", 2),
        ("I agree and disagree.", 4),
        ("Disagreeable", 4),
        ("", 4),
        ("Perhaps", 4),
        ("\uff21\uff47\uff52\uff45\uff45", 1),  # full-width letters
    ],
)
def test_a_choice_is_found_without_a_model(text: str, choice: int) -> None:
    assert choice_of(text, AGREE) == choice


def test_labels_of_choices_are_choices() -> None:
    lettered = ("A) Tea", "B) Coffee")
    assert [choice_of(text, lettered) for text in ("B", "b)", "A) Tea", "The answer is B) Coffee", "C")] == [
        1,
        1,
        0,
        1,
        2,
    ]
    assert choice_of("\u6211\u540c\u610f\u3002", ("\u540c\u610f", "\u53cd\u5bf9")) == 0


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("The capital is Paris.", "Latin"),
        ("\u9996\u90fd\u662f\u5317\u4eac", "Han"),
        ("\u6771\u4eac\u304c\u9996\u90fd\u3067\u3059", "Japanese"),
        ("\u041c\u043e\u0441\u043a\u0432\u0430", "Cyrillic"),
        ("42!", None),
    ],
)
def test_the_script_of_a_text(text: str, script: str | None) -> None:
    assert dominant_script(text) == script


def test_normalisation_is_bounded_and_forgets_what_does_not_matter() -> None:
    assert normalised("  \uff34\uff45\uff41 \n\t TEA ") == "tea tea"
    assert len(normalised("a" * 100_000)) == MAX_CHARS
    assert len(normalised("\ufdfa" * MAX_CHARS)) == MAX_CHARS  # one character that becomes eighteen


def test_telling_words_are_those_of_many_more_answers() -> None:
    ours, theirs = telling_words(
        ["Cricket is loved", "cricket", "Hockey"], ["Football", "football!", "Football and tea"]
    )
    assert [(word.word, word.answers_a, word.answers_b) for word in ours] == [
        ("cricket", 2, 0),
        ("hockey", 1, 0),
        ("loved", 1, 0),
    ]
    assert [word.word for word in theirs] == ["football", "tea"]
    assert telling_words([], ["football"]) == ((), ())
    assert telling_words(["\u8db3\u7403\u6700\u597d"], ["\u677f\u7403"])[1][0].word == "\u677f\u7403"
