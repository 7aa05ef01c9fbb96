"""How much a JSON document holds, counted in its bytes before anything is built from them.

A parser makes an object of 50 to 200 bytes out of each value, so that 15 MB of ``[[],[],…]`` become gigabytes. This
pass cuts the document at its quotation marks with byte operations, looks only at what lies outside of texts, and stops
at the first bound that is passed. It does not check the syntax: up to the first mistake it counts what a parser reads.
"""

from itertools import accumulate
from typing import Final, NamedTuple

from parallax.contracts.job import MAX_DEPTH, MAX_JOB_BYTES, MAX_KEYS, MAX_VALUES
from parallax.contracts.problem import Problem

WINDOW_BYTES: Final = 1024 * 1024
"""Bytes cut up at once: the pieces of a window need at most some 10 MB."""

_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
"""Everything that is no bracket, for ``bytes.translate``."""
_STEP: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class Size(NamedTuple):
    """What a document holds. When a bound was passed the counting stopped there, and these are lower limits."""

    values: int
    """Numbers, texts, lists, objects and words; an empty list or object counts twice."""
    keys: int
    depth: int


def excess(body: bytes) -> Problem | None:
    """The first bound that a document passes, as the problem of the whole document; ``None`` when it keeps all."""
    if len(body) > MAX_JOB_BYTES:
        return _problem(f"is {len(body)} bytes long", f"at most {MAX_JOB_BYTES} bytes")
    size = measure(body)
    if size.values > MAX_VALUES:
        allowed = f"at most {MAX_VALUES} numbers, texts, lists and objects"
        return _problem(f"holds more than {MAX_VALUES} values", allowed)
    if size.keys > MAX_KEYS:
        return _problem(f"holds more than {MAX_KEYS} keys", f"at most {MAX_KEYS} keys in all its objects")
    if size.depth > MAX_DEPTH:
        return _problem("is nested too deeply", f"at most {MAX_DEPTH} levels")
    return None


def measure(body: bytes) -> Size:
    """Count values, keys and levels, until one of them is beyond its bound."""
    values, keys, level, depth, in_text = 1, 0, 0, 0, 0
    if b"\\" in body:
        # Only texts hold backslashes. Pairs go first, so that what is left before a quotation mark escapes it.
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    for start in range(0, len(body), WINDOW_BYTES):
        pieces = body[start : start + WINDOW_BYTES].split(b'"')
        outside = b"".join(pieces[in_text::2])
        in_text ^= (len(pieces) - 1) & 1
        brackets = outside.translate(None, _BRACKETS)
        values += outside.count(b",") + brackets.count(b"[") + brackets.count(b"{")
        keys += outside.count(b":")
        if brackets:
            levels = list(accumulate(map(_STEP.__getitem__, brackets), initial=level))
            level, deepest = levels[-1], max(levels)
            depth = max(depth, deepest)
        if values > MAX_VALUES or keys > MAX_KEYS or depth > MAX_DEPTH:
            break
    return Size(values, keys, depth)


def _problem(message: str, allowed: str) -> Problem:
    return Problem(pointer="", message=message, allowed=allowed)
