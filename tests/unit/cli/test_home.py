"""One process at a time works in a home, and what a killed one left is put in order."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from parallax.errors import InvalidInputError
from parallax_cli.adoption import adopt, stop_soon
from parallax_cli.home import Home, HomeBusyError, find_home

HOLDER = """
import sys
from pathlib import Path
from parallax_cli.home import Home
with Home(Path(sys.argv[1])).exclusive() as lock:
    lock.announce(api=Path("/somewhere/api.sock"))
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_home_is_given_or_the_platforms(tmp_path: Path) -> None:
    assert find_home({"PARALLAX_HOME": str(tmp_path)}).root == tmp_path
    assert find_home({}).root.name == "parallax"
    assert find_home({"PARALLAX_HOME": "~/x"}).root == Path.home().resolve() / "x"


def test_a_second_process_is_kept_out_until_the_first_is_gone(tmp_path: Path) -> None:
    home = Home(tmp_path / "new" / "home")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(HomeBusyError, match=f"in use by process {holder.pid}: wait") as caught, home.exclusive():
            pass
        assert caught.value.api == Path("/somewhere/api.sock")
        holder.kill()
    with home.exclusive():
        assert json.loads(home.lock.read_text()) == {"pid": os.getpid(), "api": None}
    assert home.lock.read_text() == ""


def test_a_home_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match=r"PARALLAX_HOME .*file"), Home(tmp_path / "file").exclusive():
        pass


def postmaster(folder: Path, pid: int, status: str) -> Path:
    lock = folder / "postmaster.pid"
    lock.write_text("\n".join([str(pid), str(folder), "0", "5432", "/tmp", "", "1 2", status]) + "\n")
    return lock


def test_killed_processes_are_no_users_of_the_database(tmp_path: Path) -> None:
    (tmp_path / ".handle_pids.json").write_text("[1, 2")
    adopt(tmp_path)
    assert (tmp_path / ".handle_pids.json").read_text() == "[]"


def test_a_lock_file_whose_process_is_another_program_is_removed(tmp_path: Path) -> None:
    lock = postmaster(tmp_path, os.getpid(), "ready   ")
    stop_soon(tmp_path)  # must not interrupt this very process
    adopt(tmp_path)
    assert not lock.exists()


def test_a_folder_that_is_not_there_yet_is_fine(tmp_path: Path) -> None:
    adopt(tmp_path / "absent")
    stop_soon(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
