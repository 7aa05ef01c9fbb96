"""What came of an execution, as people count it: answered, refused, empty, cut off or failed. Documented rules.

The rules are in order; the first that holds decides. The same rules are written in SQL in
``results.api.queries.outcomes``, for summaries over many rows; a test keeps the two alike.
"""

import re
from typing import Final, NamedTuple

from parallax.contracts.rates import Outcome

RULES_VERSION: Final = 1
"""Grows when a rule changes, so that two counts are only compared when they were made by the same rules."""
REFUSAL_CHARS: Final = 300
"""A refusal says so at once; the same words further on are part of an answer."""

FILTER_REASONS: Final = ("content_filter", "content-filter", "safety", "prohibited_content", "blocklist")
"""Finish reasons by which providers say that a filter of theirs stopped the answer."""
FILTER_ERRORS: Final = ("content_filter", "content management policy", "responsibleaipolicyviolation")
"""What an error says when a provider's filter refused the question itself."""

_APOSTROPHE: Final = "['\u2019]"
_CANNOT: Final = "(?:cannot|can't|can not|won't|will not|am unable to|am not able to)"
_DOES: Final = (
    "(?:help|assist|answer|provide|discuss|comment|engage|fulfil|comply|share|create|offer|respond|do that|talk|say)"
)
_PATTERNS: Final = (
    rf"\mi(?:'m| am) (?:sorry|afraid),? (?:but )?(?:that )?i {_CANNOT}",
    rf"\mi {_CANNOT} {_DOES}",
    rf"\mi(?:'m| am) (?:unable|not able) to {_DOES}",
    r"\mi must (?:respectfully )?(?:decline|refuse)",
    r"\mi (?:respectfully )?(?:decline|refuse) to",
    r"\mi(?:'d| would) (?:rather|prefer) not (?:to )?(?:answer|discuss|comment|say)",
    r"\mi(?:'m| am) not (?:comfortable|allowed|permitted|authori[sz]ed)",
    rf"\mas an? (?:ai|artificial intelligence|language model)[a-z ]{{0,30}},? i (?:{_CANNOT}|don't|do not)",
    r"\mi (?:do not|don't) have (?:a |any )?(?:personal )?(?:opinions?|beliefs?|preferences?|feelings?)",
    r"(?:beyond|outside) (?:the scope of )?my (?:current )?(?:scope|capabilities)",
    r"\mlet's (?:talk about|change the subject|discuss) something else",
    r"(?:against|violates?) (?:my|our|the) (?:guidelines|policy|policies|usage policies|content policy)",
)
REFUSAL_PATTERN: Final = "|".join(_PATTERNS).replace("'", _APOSTROPHE)
"""English sentences that refuse, as one regular expression in PostgreSQL's syntax (``\\m``: the beginning of a word).

A heuristic: it labels a difference, and never decides whether there is one, because the wording is compared whatever
the label says. A bare "I'm sorry" is not in the list: half of what it flagged was an answer."""

_REFUSES: Final = re.compile(REFUSAL_PATTERN.replace(r"\m", r"\b"), re.IGNORECASE)


class Ended(NamedTuple):
    """What the rules look at."""

    completed: bool
    text: str
    refusal: str | None = None
    finish_reason: str | None = None
    error: str | None = None
    """Code and message of the error, where there is one."""


def outcome_of(ended: Ended) -> Outcome:
    """The class of an execution that has ended."""
    if not ended.completed:
        error = (ended.error or "").lower()
        return Outcome.REFUSED_BY_FILTER if any(said in error for said in FILTER_ERRORS) else Outcome.FAILED
    reason = (ended.finish_reason or "").lower()
    if reason in FILTER_REASONS:
        return Outcome.REFUSED_BY_FILTER
    if ended.refusal:
        return Outcome.REFUSED_BY_FIELD
    if not ended.text.strip():
        return Outcome.EMPTY
    if refuses(ended.text):
        return Outcome.REFUSED_IN_WORDS
    return Outcome.CUT_OFF if reason == "length" else Outcome.ANSWERED


def refuses(text: str) -> bool:
    """Whether the beginning of a text reads like a refusal, in English."""
    return _REFUSES.search(text[:REFUSAL_CHARS]) is not None
