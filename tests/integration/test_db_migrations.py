"""A schema is brought up to date, and left alone once it is."""

import subprocess
import sys
from importlib.resources import as_file, files

import pytest
from alembic.script import ScriptDirectory

from parallax.db.engine import create_engine
from parallax.db.migrations import migrate, newest

_AGAIN = """
import asyncio, sys
from parallax.db.engine import create_engine
from parallax.db.migrations import migrate

async def again(url):
    engine = create_engine(url, application_name="test")
    await migrate(engine, package="results", schema="results")
    await engine.dispose()

asyncio.run(again(sys.argv[1]))
print("alembic" in sys.modules)
"""


@pytest.mark.parametrize("there", [True, False])
async def test_what_migrates_is_loaded_only_for_a_schema_that_is_behind(database_url: str, *, there: bool) -> None:
    engine = create_engine(database_url, application_name="test")
    if there:
        await migrate(engine, package="results", schema="results")
    await engine.dispose()
    loaded = subprocess.run(  # noqa: ASYNC221 - what a process has loaded only itself can tell
        [sys.executable, "-c", _AGAIN, database_url], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == str(not there)


@pytest.mark.parametrize("package", ["dispatcher", "results"])
def test_the_newest_file_is_the_last_revision(package: str) -> None:
    with as_file(files(package) / "migrations") as folder:
        assert newest(folder) == ScriptDirectory(str(folder)).get_current_head()
