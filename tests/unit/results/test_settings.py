"""Settings of the writer from the environment."""

import pytest

from parallax.errors import InvalidInputError
from results.settings import Settings, from_environment


def test_the_environment_need_not_say_anything() -> None:
    assert from_environment({}) == Settings()


def test_the_grace_can_be_set() -> None:
    assert from_environment({"PARALLAX_GRACE_S": "2.5"}) == Settings(grace_s=2.5)


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf", ""])
def test_a_grace_that_is_no_duration_is_refused(value: str) -> None:
    with pytest.raises(InvalidInputError, match="PARALLAX_GRACE_S"):
        from_environment({"PARALLAX_GRACE_S": value})
