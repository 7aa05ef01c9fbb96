"""Numbers that JSON does not have."""

import pytest
from pydantic import ValidationError

from parallax.contracts.outcomes import Attempt

ATTEMPT = '{"number": 1, "started_at": "2026-01-01T00:00:00Z", "duration_s": %s, "outcome": "ok"}'


@pytest.mark.parametrize("number", ["Infinity", "NaN", "1e999"])
def test_what_could_only_be_written_as_null_is_refused(number: str) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Attempt.model_validate_json(ATTEMPT % number)
