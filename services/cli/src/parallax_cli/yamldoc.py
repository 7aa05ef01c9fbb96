"""YAML without surprises: plain JSON data, and the line of every value in it.

Built from parse events, so that nothing is resolved behind the reader's back: only ``null``, ``true``, ``false``
and numbers as JSON writes them are not strings. No timestamps, no ``yes`` and ``no``, no octal or sexagesimal
numbers, no tags, no merge keys; a key given twice is a problem. Aliases are allowed, and bounded like
everything else, so that a small file cannot unfold into a huge one.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import yaml

MAX_DEPTH: Final = 50
"""Nesting of a document. Job files need six levels; metadata may need some more."""
MAX_VALUES: Final = 2_000_000
"""Values of a document, aliases unfolded: 20,000 questions with 100 values each."""

_INTEGER: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_FLOAT: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$")
_WORDS: Final[dict[str, bool | None]] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
MAX_INTEGER_DIGITS: Final = 18
"""Longer integers are no numbers any format of ours carries; kept as text they get a clear problem."""


class Mark(NamedTuple):
    """A place in the file, counted from one."""

    line: int
    column: int


class YamlProblem(NamedTuple):
    """What is wrong with the text, and where."""

    mark: Mark
    message: str


@dataclass(slots=True)
class Node:
    """One value with its place; ``value`` is a scalar, a list of nodes, or a mapping of keys to nodes."""

    mark: Mark
    value: Any = None
    key_marks: dict[str, Mark] = field(default_factory=dict)
    size: int = 1
    """Values in it, aliases unfolded."""
    closed: bool = True
    """False while its end was not read: an alias to it would be a document that contains itself."""

    def data(self) -> Any:
        """The value as plain JSON data."""
        if isinstance(self.value, dict):
            return {key: child.data() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.data() for child in self.value]
        return self.value

    def place(self, steps: list[str]) -> Mark:
        """Where the value at a path is: its key in a mapping, else its start; the nearest parent if it is absent."""
        node, mark = self, self.mark
        for step in steps:
            if isinstance(node.value, dict) and step in node.value:
                mark, node = node.key_marks[step], node.value[step]
            elif isinstance(node.value, list) and step.isdigit() and int(step) < len(node.value):
                node = node.value[int(step)]
                mark = node.mark
            else:
                break
        return mark


class _RefusedError(Exception):
    """The text breaks a rule that leaves nothing to go on with."""

    def __init__(self, mark: Mark, message: str) -> None:
        super().__init__(message)
        self.problem = YamlProblem(mark, message)


def read_yaml(text: str) -> tuple[Node | None, tuple[YamlProblem, ...]]:
    """The document in a text and what is wrong with it; no node when it cannot be read at all."""
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        mark = _mark(place) if place else Mark(1, 1)
        reason = error.problem or error.context or "unreadable"
        return None, (*builder.problems, YamlProblem(mark, f"is not YAML: {reason}"))
    except yaml.YAMLError as error:
        return None, (*builder.problems, YamlProblem(Mark(1, 1), f"is not YAML: {error}"))
    except _RefusedError as error:
        return None, (*builder.problems, error.problem)
    if builder.root is None:
        return None, (*builder.problems, YamlProblem(Mark(1, 1), "is empty"))
    return builder.root, tuple(builder.problems)


_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _mark(mark: Any) -> Mark:
    return Mark(mark.line + 1, mark.column + 1)


class _Builder:
    """Grows the tree from parse events. One open container per level of ``_open``."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self.problems: list[YamlProblem] = []
        self._open: list[Node] = []
        self._keys: list[tuple[str, Mark] | None] = []
        self._anchors: dict[str, Node] = {}
        self._values = 0

    def take(self, event: Any) -> None:
        match event:
            case yaml.DocumentStartEvent():
                if self.root is not None:
                    raise _RefusedError(
                        _mark(event.start_mark), "a second document starts here; one file holds one job"
                    )
            case yaml.AliasEvent():
                self._alias(event)
            case yaml.ScalarEvent():
                self._scalar(event)
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                self._start(event)
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                self._end()
            case _:
                pass

    def _alias(self, event: Any) -> None:
        mark = _mark(event.start_mark)
        node = self._anchors.get(event.anchor)
        if node is None:
            raise _RefusedError(mark, f"unknown alias *{event.anchor}")
        if not node.closed:
            raise _RefusedError(mark, f"alias *{event.anchor} contains itself")
        if self._expects_key():
            raise _RefusedError(mark, "an alias cannot be a key")
        self._count(node.size, mark)
        self._add(node)

    def _scalar(self, event: Any) -> None:
        mark = _mark(event.start_mark)
        self._refuse_tag(event, mark)
        if self._expects_key():
            self._key(event.value, mark)
            return
        plain = event.style is None or event.style == ""
        value = _plain_value(event.value) if plain else event.value
        node = Node(mark, value)
        self._count(1, mark)
        self._remember(event.anchor, node)
        self._add(node)

    def _start(self, event: Any) -> None:
        mark = _mark(event.start_mark)
        self._refuse_tag(event, mark)
        if self._expects_key():
            raise _RefusedError(mark, "a key must be plain text")
        if len(self._open) >= MAX_DEPTH:
            raise _RefusedError(mark, f"is nested deeper than {MAX_DEPTH} levels")
        node = Node(mark, {} if isinstance(event, yaml.MappingStartEvent) else [], closed=False)
        self._count(1, mark)
        self._remember(event.anchor, node)
        self._open.append(node)
        self._keys.append(None)

    def _end(self) -> None:
        node = self._open.pop()
        self._keys.pop()
        node.closed = True
        self._add(node)

    def _key(self, key: str, mark: Mark) -> None:
        node = self._open[-1]
        if key in node.key_marks:
            first = node.key_marks[key]
            self.problems.append(YamlProblem(mark, f"key {key!r:.100} was already given on line {first.line}"))
        node.key_marks.setdefault(key, mark)
        self._keys[-1] = (key, mark)

    def _expects_key(self) -> bool:
        return bool(self._open) and isinstance(self._open[-1].value, dict) and self._keys[-1] is None

    def _add(self, node: Node) -> None:
        if not self._open:
            self.root = node
            return
        parent = self._open[-1]
        parent.size += node.size
        key = self._keys[-1]
        if isinstance(parent.value, list):
            parent.value.append(node)
        elif key is not None:
            parent.value.setdefault(key[0], node)
            self._keys[-1] = None

    def _remember(self, anchor: str | None, node: Node) -> None:
        if anchor is not None:
            self._anchors[anchor] = node

    def _count(self, values: int, mark: Mark) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise _RefusedError(mark, f"holds more than {MAX_VALUES} values, aliases unfolded")

    def _refuse_tag(self, event: Any, mark: Mark) -> None:
        if event.tag is not None and event.tag != "!":
            self.problems.append(YamlProblem(mark, f"tag {event.tag!r:.100} is not allowed; write plain data"))


def _plain_value(text: str) -> str | int | float | bool | None:
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.match(text) and len(text) <= MAX_INTEGER_DIGITS:
        return int(text)
    if _FLOAT.match(text):
        number = float(text)
        return number if math.isfinite(number) else text
    return text
