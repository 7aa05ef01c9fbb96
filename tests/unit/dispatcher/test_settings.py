"""Settings come from the environment, and a bad value is told by name."""

import pytest

from dispatcher.settings import Settings, from_environment
from parallax.errors import InvalidInputError


def test_an_empty_environment_gives_the_defaults() -> None:
    assert from_environment({}) == Settings()


def test_every_variable_is_read() -> None:
    environment = {
        "PARALLAX_MAX_ACTIVE_JOBS": "7",
        "PARALLAX_RECONCILE_AFTER_S": "1.5",
        "PARALLAX_TIMER_S": "0.5",
        "PARALLAX_PREFETCH": "3",
        "PARALLAX_GRACE_S": "2",
        "PARALLAX_TOMBSTONES_KEPT_S": "60",
    }
    assert from_environment(environment) == Settings(
        max_active_jobs=7, reconcile_after_s=1.5, timer_s=0.5, prefetch=3, grace_s=2, tombstones_kept_s=60
    )


def test_every_bad_value_is_named() -> None:
    with pytest.raises(InvalidInputError) as raised:
        from_environment({"PARALLAX_PREFETCH": "2.5", "PARALLAX_TIMER_S": "nan", "PARALLAX_GRACE_S": "-1"})
    lines = str(raised.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["PARALLAX_TIMER_S", "PARALLAX_PREFETCH", "PARALLAX_GRACE_S"]
    assert "'2.5' is not valid; expected a whole number above 0" in lines[1]
