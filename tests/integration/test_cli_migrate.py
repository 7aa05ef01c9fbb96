"""``parallax migrate`` as operators type it."""

from pathlib import Path

from parallax.db.migrations import known
from parallax_cli.schemas import SCHEMAS
from tests.e2e.command import Parallax

EVERY = [f"{name} {revision.number}" for name in SCHEMAS for revision in known(name, name)]


async def test_a_new_database_is_migrated_once(tmp_path: Path, database_url: str) -> None:
    parallax = Parallax(tmp_path / "no-home", {"PARALLAX_DATABASE_URL": database_url})

    pending = (await parallax("migrate", "--check", "--json")).document()
    assert [f"{each['schema']} {each['number']}" for each in pending["pending"]] == EVERY
    assert pending["applied"] == []

    done = await parallax("migrate", "--before")
    assert done.code == 0, done.err
    assert [line.removeprefix("done: ").split(" (")[0] for line in done.out.splitlines()] == EVERY

    again = await parallax("migrate", "--after")
    assert (again.code, again.out) == (0, "nothing to do\n")
    assert (await parallax("migrate", "--json")).document() == {"applied": [], "pending": []}
    assert not parallax.home.exists()


async def test_what_cannot_be_done_is_said(tmp_path: Path, database_url: str) -> None:
    parallax = Parallax(tmp_path / "no-home", {"PARALLAX_DATABASE_URL": database_url})
    both = await parallax("migrate", "--before", "--after")
    assert both.code == 2
    assert "one belongs before a roll-out" in both.err
    nowhere = await Parallax(tmp_path / "no-home")("migrate")
    assert nowhere.code == 2
    assert "PARALLAX_DATABASE_URL is not set" in nowhere.err
    away = Parallax(tmp_path / "no-home", {"PARALLAX_DATABASE_URL": f"postgresql://nobody@/none?host={tmp_path}"})
    assert (await away("migrate")).code == 4


async def test_a_service_that_is_too_early_says_what_it_waits_for(tmp_path: Path, database_url: str) -> None:
    listed = await Parallax(tmp_path / "no-home", {"PARALLAX_DATABASE_URL": database_url})("keys", "list")
    assert listed.code == 4
    assert "schema 'results' does not exist" in listed.err
    assert "`parallax migrate --before`" in listed.err
