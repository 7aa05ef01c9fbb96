"""Results as frames of libraries that are not among our dependencies."""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

from parallax.client import Results

ROWS: list[dict[str, Any]] = [
    {"execution_id": "a", "status": "failed", "output": None, "duration_s": None},
    {"execution_id": "b", "status": "completed", "output": {"text": "yes", "refusal": None}, "duration_s": 1},
    {"execution_id": "c", "status": "completed", "output": {"text": "no", "refusal": None}, "duration_s": 1.5},
]
FRAMES: dict[str, Callable[[Results], Any]] = {"pandas": Results.to_pandas, "polars": Results.to_polars}


@pytest.mark.parametrize("library", FRAMES)
def test_a_missing_library_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed, wherever this runs
    with pytest.raises(ImportError, match=rf"to_{library}\(\) needs the package {library}.*pip install {library}"):
        FRAMES[library](Results(ROWS))


@pytest.mark.parametrize("library", FRAMES)
def test_a_frame_has_a_line_for_each_execution(library: str) -> None:
    if find_spec(library) is None:
        pytest.skip(f"{library} is optional, and not installed here")
    frame = FRAMES[library](Results(ROWS))
    assert len(frame) == 3
    assert list(frame["execution_id"]) == ["a", "b", "c"]
    assert list(frame["duration_s"])[1:] == [1.0, 1.5]
