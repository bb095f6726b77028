"""Is there a backup from before the first step, or no step?"""

import fcntl
import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from django.conf import settings

from gotong_royong.zero_downtime.models import Run
from tests.databases import look
from tests.zero_downtime.shop import finish

pytestmark = pytest.mark.once


@pytest.fixture
def migrated(shop):
    shop.settings(
        f"ZERO_DOWNTIME_POSTGRESQL_PROGRAMS = {str(settings.ZERO_DOWNTIME_POSTGRESQL_PROGRAMS or '')!r} or None"
    )
    shop.succeed("migrate")
    shop.write("0002_size", 'column("items", "size")')
    return shop


def test_it_is_taken_before_the_first_step_and_recorded(migrated, scratch, tmp_path):
    folder = tmp_path / "kept"
    folder.mkdir()
    out = migrated.succeed("migrate", "--backup", str(folder))
    assert "Backed up scratch_" in out
    assert out.index("Backed up") < out.index("Applying shop.0002_size")
    run = Run.objects.using(scratch.alias).latest("pk")
    (file,) = folder.iterdir()
    assert run.backup == str(file)
    program = Path(settings.ZERO_DOWNTIME_POSTGRESQL_PROGRAMS or "/usr/bin") / "pg_restore"
    done = subprocess.run([program, "--file=-", file], capture_output=True, text=True, check=True)
    assert "CREATE TABLE public.items" in done.stdout
    assert "size integer" not in done.stdout


def test_nothing_to_do_needs_none(migrated, scratch, tmp_path):
    migrated.succeed("migrate")
    before = Run.objects.using(scratch.alias).count()
    out = migrated.succeed("migrate", "--backup", str(tmp_path / "nowhere"))
    assert "No migrations to apply." in out
    assert "There is nothing to do, so no backup was made." in out
    assert Run.objects.using(scratch.alias).count() == before


def test_without_one_there_is_no_step(migrated, scratch, tmp_path):
    before = look(scratch)
    said = migrated.fail("migrate", "--backup", str(tmp_path / "nowhere"))
    assert said.startswith(
        f"BackupFailed: No backup: {tmp_path / 'nowhere'} is not a folder. Nothing was migrated. Make"
    )
    assert look(scratch) == before
    run = Run.objects.using(scratch.alias).latest("pk")
    assert (run.status, run.backup, run.steps.count()) == ("failed", "", 0)
    assert run.error == said.strip().removeprefix("BackupFailed: ")


def test_one_that_was_cut_off_is_removed_by_the_next_run(migrated, scratch, tmp_path):
    """But not that of another database, nor one that is still written."""
    folder = tmp_path / "kept"
    folder.mkdir()
    name = scratch.settings_dict["NAME"]
    ours, theirs, written, done = (
        folder / f"{name}_20260307120000.dump.part",
        folder / f"{name}_2_20260307120000.dump.part",
        folder / f"{name}_20260307120001.dump.part",
        folder / f"{name}_20260307120000.dump",
    )
    for path in (ours, theirs, written, done):
        path.write_bytes(b"PGDMP")
    with written.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        out = migrated.succeed("migrate", "--backup", str(folder))
    assert f"Removed {ours}, a backup that was cut off." in out
    assert out.count("Removed") == 1
    assert not ours.exists()
    assert theirs.exists()
    assert written.exists()
    assert done.exists()


def test_a_run_that_is_killed_leaves_a_dump_for_the_next_one_to_remove(migrated, scratch, tmp_path):
    folder = tmp_path / "kept"
    folder.mkdir()
    with scratch.cursor() as cursor:
        cursor.execute("BEGIN; LOCK TABLE items IN ACCESS EXCLUSIVE MODE")  # for which pg_dump waits
        run = migrated.start("migrate", "--backup", str(folder))
        while not list(folder.glob("*.part")):
            assert run.poll() is None, finish(run)
            time.sleep(0.02)
        run.kill()
        finish(run)
        cursor.execute("COMMIT")
    (cut_off,) = folder.glob("*.part")
    while any(str(cut_off) in link for link in open_files()):
        time.sleep(0.02)
    os.utime(cut_off, (0, 0))  # it is empty still, as one is that was made a moment ago
    assert f"Removed {cut_off}" in migrated.succeed("migrate", "--backup", str(folder))
    assert [path.suffix for path in folder.iterdir()] == [".dump"]


def open_files():
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            yield from (file.path for file in process.open_files())
