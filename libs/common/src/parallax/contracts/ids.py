"""Identifiers derived from what they name, so that a repeated step makes the same ids again."""

import json
from typing import Final
from uuid import UUID, uuid5

_EXECUTIONS: Final = UUID("6f1b4c1e-6f0a-5e7e-9d52-3b8f4b8e6f10")
"""Namespace of execution ids; changing it would disown every stored execution."""


def execution_id(job_id: str, question_id: str, model_id: str, region: str, sample: int) -> UUID:
    """The id of one execution: UUIDv5 (RFC 9562) over the JSON array of its coordinates."""
    coordinates = json.dumps([job_id, question_id, model_id, region, sample], separators=(",", ":"))
    return uuid5(_EXECUTIONS, coordinates)
