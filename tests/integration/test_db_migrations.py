"""Schemas are migrated once, in phases, alone, and without stopping those who use them."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from importlib.resources import as_file, files
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.db.engine import create_engine
from parallax.db.migrations import Phase, Revision, check, due, known, migrate, pending
from parallax.errors import InvalidInputError, UnavailableError
from parallax_cli.schemas import SCHEMAS, migrate_all, pending_in_all
from tests.harness.results import eventually, row, rows

PATIENCE_S = 60.0
LONGEST_WAIT_S = 5.0
"""Ten times what a revision may make others wait; this machine may be busy."""

_AGAIN = """
import asyncio, sys
from parallax.db.engine import create_engine
from parallax.db.migrations import check, migrate

async def again(url, there):
    engine = create_engine(url, application_name="test")
    if there:
        await check(engine, package="results", schema="results")
    await migrate(engine, package="results", schema="results")
    await engine.dispose()

asyncio.run(again(sys.argv[1], sys.argv[2] == "True"))
print("alembic" in sys.modules)
"""

Write = Callable[..., None]


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, application_name="test", pool_size=5)
    yield engine
    await engine.dispose()


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes revisions of a package of its own: ``toy("expand", "body of upgrade")``."""
    folder = tmp_path / "toy" / "migrations" / "versions"
    folder.mkdir(parents=True)
    (tmp_path / "toy" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy", raising=False)

    def write(phase: str, *lines: str) -> None:
        number = len(list(folder.glob("*.py"))) + 1
        before = f'"{number - 1:04}"' if number > 1 else None
        body = "\n    ".join(lines)
        (folder / f"{number:04}_{phase}_a_step.py").write_text(
            "from alembic import op\nfrom parallax.db.operations import create_index\n"
            f'revision = "{number:04}"\ndown_revision = {before}\n\n\ndef upgrade():\n    {body}\n'
        )

    return write


async def toys(engine: AsyncEngine, phase: Phase | None = None) -> list[str]:
    """Migrate the toy's schema; the numbers of what was run."""
    async with asyncio.timeout(PATIENCE_S):
        return [r.number for r in await migrate(engine, package="toy", schema="toy", phase=phase)]


TABLE = 'op.execute("CREATE TABLE toy.t (n integer)")'
INDEX = 'create_index("toy", "t_n", "toy.t (n)")'


async def insert_quickly(engine: AsyncEngine, count: int = 20) -> None:
    """Insert rows one by one, none of which may wait for long."""
    for number in range(count):
        async with asyncio.timeout(LONGEST_WAIT_S), engine.begin() as connection:
            await connection.exec_driver_sql(f"INSERT INTO toy.t VALUES ({number})")


# --- the revisions that there are


@pytest.mark.parametrize("package", SCHEMAS)
def test_revisions_are_numbered_in_order_and_named_after_their_phase(package: str) -> None:
    numbers = [revision.number for revision in known(package, package)]
    assert numbers == [f"{number:04}" for number in range(1, len(numbers) + 1)]
    with as_file(files(package) / "migrations") as folder:
        script = ScriptDirectory(str(folder))
        assert [each.revision for each in script.walk_revisions()] == numbers[::-1]
        assert not any(hasattr(each.module, "downgrade") for each in script.walk_revisions()), (
            "rolling back starts the older services on the newer schema"
        )


@pytest.mark.parametrize("there", [True, False])
async def test_what_migrates_is_loaded_only_for_a_schema_that_is_behind(database_url: str, *, there: bool) -> None:
    if there:
        await migrate_all(database_url)
    loaded = subprocess.run(  # noqa: ASYNC221 - what a process has loaded only itself can tell
        [sys.executable, "-c", _AGAIN, database_url, str(there)], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip().splitlines()[-1] == str(not there)


async def test_every_schema_is_migrated_once_by_those_who_try_together(database_url: str) -> None:
    done = await asyncio.gather(*(migrate_all(database_url) for _ in range(3)))
    everything = [revision for name in SCHEMAS for revision in known(name, name)]
    assert sorted(revision for each in done for revision in each) == sorted(everything)
    assert await pending_in_all(database_url) == ()
    assert await migrate_all(database_url) == ()


# --- phases


def steps(*phases: Phase) -> tuple[Revision, ...]:
    return tuple(Revision("toy", f"{number:04}", phase, "a step") for number, phase in enumerate(phases, 1))


E, C = Phase.EXPAND, Phase.CONTRACT


@pytest.mark.parametrize(
    ("pending_phases", "phase", "run"),
    [
        ((E, E, C), None, 3),
        ((E, E, C), E, 2),
        ((E, E, C), C, 0),
        ((C, E, C), C, 1),
        ((C, E, C), E, 0),
        ((), E, 0),
    ],
)
def test_a_phase_runs_as_far_as_the_other_phase_is_not_due(
    pending_phases: tuple[Phase, ...], phase: Phase | None, run: int
) -> None:
    left = steps(*pending_phases)
    assert due(left, phase, fresh=False) == left[:run]


def test_nobody_is_waited_for_on_a_fresh_schema() -> None:
    left = steps(E, C, E, C)
    assert due(left, E, fresh=True) == left
    assert due(left, C, fresh=True) == ()


async def test_a_roll_out_in_two_phases(engine: AsyncEngine, toy: Write) -> None:
    toy("expand", TABLE)
    assert await toys(engine, E) == ["0001"]
    toy("expand", 'op.execute("ALTER TABLE toy.t ADD COLUMN m integer")')
    toy("contract", 'op.execute("ALTER TABLE toy.t DROP COLUMN n")')
    assert await toys(engine, C) == []
    assert await toys(engine, E) == ["0002"]
    await check(engine, package="toy", schema="toy")
    toy("expand", 'op.execute("ALTER TABLE toy.t ADD COLUMN o integer")')
    with pytest.raises(InvalidInputError, match=r"0004.*comes after.*0003.*migrate --after"):
        await toys(engine, E)
    assert await toys(engine, C) == ["0003"]
    assert await toys(engine, E) == ["0004"]
    assert await pending(engine, package="toy", schema="toy") == ()


async def test_a_service_waits_for_its_schema_and_takes_a_newer_one(engine: AsyncEngine, toy: Write) -> None:
    toy("expand", TABLE)
    with pytest.raises(UnavailableError, match="does not exist; this version needs 0001: run `parallax migrate"):
        await check(engine, package="toy", schema="toy")
    await toys(engine)
    await check(engine, package="toy", schema="toy")
    toy("expand", INDEX)
    toy("contract", 'op.execute("ALTER TABLE toy.t DROP COLUMN n")')
    with pytest.raises(UnavailableError, match="is at revision 0001; this version needs 0002"):
        await check(engine, package="toy", schema="toy")
    await toys(engine, E)
    await check(engine, package="toy", schema="toy")
    async with engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE toy.alembic_version SET version_num = '0417'")
    await check(engine, package="toy", schema="toy")
    assert await toys(engine) == [], "an older version leaves a newer schema alone"


# --- among those who use it


async def test_each_revision_is_committed_by_itself(engine: AsyncEngine, toy: Write) -> None:
    toy("expand", TABLE)
    toy(
        "expand", 'op.execute("INSERT INTO toy.t VALUES (1)")', "op.execute(\"INSERT INTO toy.t VALUES ('no number')\")"
    )
    with pytest.raises(Exception, match="no number"):
        await toys(engine)
    assert await rows(engine, "SELECT * FROM toy.t") == []
    assert await row(engine, "SELECT version_num FROM toy.alembic_version") == {"version_num": "0001"}


async def test_a_revision_that_waits_for_a_lock_does_not_make_others_wait(engine: AsyncEngine, toy: Write) -> None:
    toy("expand", TABLE)
    await toys(engine)
    toy("expand", 'op.execute("ALTER TABLE toy.t ADD COLUMN m integer")')
    async with engine.begin() as reader:
        await reader.exec_driver_sql("SELECT * FROM toy.t")
        migrating = asyncio.create_task(toys(engine))
        waiting = "SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted"

        async def is_waiting() -> bool:
            return bool(await rows(engine, waiting))

        await eventually(is_waiting)
        await insert_quickly(engine)
        assert not migrating.done()
    assert await migrating == ["0002"]


async def test_an_index_is_built_while_rows_are_written(engine: AsyncEngine, toy: Write) -> None:
    toy("expand", TABLE)
    await toys(engine)
    toy("expand", INDEX)
    async with engine.begin() as writer:
        await writer.exec_driver_sql("INSERT INTO toy.t VALUES (0)")
        migrating = asyncio.create_task(toys(engine))
        building = """
            SELECT 1 FROM pg_stat_progress_create_index
            WHERE command = 'CREATE INDEX CONCURRENTLY' AND phase LIKE 'waiting for writers%'"""

        async def is_building() -> bool:
            return bool(await rows(engine, building))

        await eventually(is_building)
        await insert_quickly(engine)
        assert not migrating.done()
    assert await migrating == ["0002"]


async def test_an_index_that_an_earlier_try_left_unfinished_is_built_again(engine: AsyncEngine, toy: Write) -> None:
    toy("expand", TABLE)
    await toys(engine)
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.exec_driver_sql("INSERT INTO toy.t VALUES (1), (1)")
        with pytest.raises(IntegrityError):
            await connection.exec_driver_sql("CREATE UNIQUE INDEX CONCURRENTLY t_n ON toy.t (n)")
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'toy.t_n'::regclass"
    assert await row(engine, valid) == {"indisvalid": False}
    toy("expand", INDEX)
    assert await toys(engine) == ["0002"]
    assert await row(engine, valid) == {"indisvalid": True}


async def test_neither_settings_nor_the_lock_stay_behind(engine: AsyncEngine, toy: Write) -> None:
    toy("expand", TABLE)
    await toys(engine)
    assert await rows(engine, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory'") == []
    assert await row(engine, "SHOW statement_timeout") == {"statement_timeout": "10s"}


async def test_a_revision_has_no_time_limit(engine: AsyncEngine, toy: Write) -> None:
    toy("expand", TABLE, "op.execute(\"INSERT INTO toy.t SELECT 1 WHERE current_setting('statement_timeout') = '0'\")")
    await toys(engine)
    assert len(await rows(engine, "SELECT * FROM toy.t")) == 1
