"""Is there a backup from before the first step, or no step?"""

import subprocess
from pathlib import Path

import pytest
from django.conf import settings

from gotong_royong.zero_downtime.models import Run
from tests.test_migrations import look

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
    assert "No migrations to apply." in migrated.succeed("migrate", "--backup", str(tmp_path / "nowhere"))
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
