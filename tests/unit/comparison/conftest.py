"""Linear algebra on one core, as in the service."""

from collections.abc import Iterator

import pytest

from results.comparison.engine import one_thread


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
