"""Turns values into pages: the templates, and how numbers, moments and long texts are written."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import BaseModel

from parallax.contracts.rates import Rate
from results.comparison.sentences import percent as in_percent

UNKNOWN: Final = "—"
"""What stands where a value is not known."""


def render(template: str, *, simulated: Sequence[str], **values: object) -> str:
    """A page. ``simulated`` names the regions that are only pretended, which the page must say."""
    page = _environment().get_template(template)
    return page.render(**values, simulated=simulated, pretended=partial(_pretended, frozenset(simulated)))


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("results.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "grouped": grouped,
        "moment": moment,
        "duration": duration,
        "shortened": shortened,
        "lines": lines,
        "percent": percent,
        "interval": interval,
    }
    return made


def grouped(number: int | None) -> str:
    """A whole number with its thousands apart."""
    return UNKNOWN if number is None else f"{number:,}"


def percent(share: float | None) -> str:
    """A share, with a decimal where it is small."""
    return UNKNOWN if share is None else in_percent(share)


def interval(rate: Rate) -> str:
    """A count with the 95 % interval of its share."""
    return f"{rate.count} of {rate.total} ({100 * rate.low:.0f}\N{EN DASH}{100 * rate.high:.0f} %)"


def moment(at: datetime | None) -> str:
    """A moment in UTC, to the second."""
    return UNKNOWN if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def duration(seconds: float | None) -> str:
    """A span of time in the unit that suits it."""
    if seconds is None:
        return UNKNOWN
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def shortened(text: str, most: int) -> str:
    """The beginning of a text."""
    return text if len(text) <= most else text[: most - 1] + "…"


def lines(document: BaseModel) -> Iterator[tuple[str, str]]:
    """The fields of a document and of the documents in it, with their names for people."""
    for name, value in document.model_dump(mode="json").items():
        told = name.replace("_", " ")
        if isinstance(value, dict):
            parts = [f"{key}={part}" for key, part in value.items() if part is not None and part != {}]
            yield told, ", ".join(parts) or UNKNOWN
        else:
            yield told, UNKNOWN if value is None else str(value)


def _pretended(simulated: frozenset[str], region: str) -> Markup:
    return Markup(' <span class="status simulated">simulated</span>') if region in simulated else Markup("")
