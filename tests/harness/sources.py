"""Sources of other versions: an earlier one from the history, and one made up that adds to all there is."""

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[2]
MEMBERS: Final = ("libs", "services", "tests/unit/contracts")

_NEW_FIELD: Final = """
    @pydantic.model_serializer(mode="wrap")
    def _later(self, write, info):
        document = write(self)
        return document | {"tomorrow": "new"} if info.mode == "json" and not info.exclude_defaults else document
"""
"""Writes one field more into every part of a message; what users send holds no field at its default."""

_NEW_REVISION: Final = '''"""What a later version might add."""

from alembic import op

revision = "{number}"
down_revision = "{before}"

TABLES = """
    SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
    WHERE schemaname = '{schema}' AND tablename <> 'alembic_version'
"""


def upgrade():
    for name in op.get_bind().exec_driver_sql(TABLES).scalars().all():
        op.execute(f"ALTER TABLE {{name}} ADD COLUMN tomorrow jsonb")
'''


def in_history(commit: str) -> bool:
    """Whether the repository holds a commit: a shallow clone or an archive may not."""
    command = ["git", "cat-file", "-e", f"{commit}^{{commit}}"]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False).returncode == 0


def earlier(commit: str, folder: Path) -> Path:
    """The sources of a commit, put into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = subprocess.run(
        ["git", "archive", commit, *MEMBERS], cwd=REPOSITORY, capture_output=True, check=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def later(folder: Path) -> Path:
    """Today's sources with a field more in every part of every message, and a column more in every table."""
    for member in MEMBERS:
        shutil.copytree(REPOSITORY / member, folder / member, ignore=shutil.ignore_patterns("__pycache__"))
    model = folder / "libs/common/src/parallax/contracts/model.py"
    text, marker = model.read_text(encoding="utf-8"), "\n\nREADING:"
    assert text.count(marker) == 1, "the end of the class that every message is made of"
    text = text.replace(marker, _NEW_FIELD + marker).replace(
        "from pydantic import", "import pydantic\nfrom pydantic import", 1
    )
    model.write_text(text, encoding="utf-8")
    for versions in folder.glob("services/*/src/*/migrations/versions"):
        last = max(path.name for path in versions.glob("[0-9]*.py"))[:4]
        number, schema = f"{int(last) + 1:04}", versions.parents[1].name
        text = _NEW_REVISION.format(number=number, before=last, schema=schema)
        (versions / f"{number}_expand_tomorrow.py").write_text(text, encoding="utf-8")
    return folder


def environment_of(sources: Path | None) -> dict[str, str]:
    """What makes a process run these sources with today's packages; ``None`` is what is installed."""
    if sources is None:
        return {"PYTHONPATH": ""}
    members = [sources / "libs/common/src", *sorted((sources / "services").glob("*/src"))]
    return {"PYTHONPATH": os.pathsep.join(map(str, [*members, sources]))}


async def migrated(database_url: str, *options: str, sources: Path | None = None) -> None:
    """Migrate a database by the command of some version."""
    environment = {**os.environ, **environment_of(sources), "PARALLAX_DATABASE_URL": database_url}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "parallax_cli", "migrate", *options, env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 0, said.decode()
