"""Does a batch that fails go away as a whole, and is what cannot go away said?"""

import signal
import time

import pytest

from gotong_royong.zero_downtime.models import Run, Step
from tests.databases import look
from tests.zero_downtime.shop import finish

pytestmark = pytest.mark.once

NO_TABLE = 'migrations.RunSQL("ALTER TABLE nowhere ADD COLUMN size int", migrations.RunSQL.noop)'
INDEX = 'migrations.RunSQL("CREATE INDEX CONCURRENTLY by_size ON items (size)", "DROP INDEX CONCURRENTLY by_size")'
INDEX_ANYHOW = INDEX.replace('"DROP INDEX CONCURRENTLY by_size"', '"DROP INDEX CONCURRENTLY IF EXISTS by_size"')
ITEM = 'migrations.CreateModel("Item", [("id", models.AutoField(primary_key=True))])'
NOT_ATOMIC = "atomic = False"


@pytest.fixture
def migrated(shop):
    shop.succeed("migrate")
    shop.write("0002_size", 'column("items", "size")')
    shop.write("0003_color", 'column("items", "color")')
    return shop


def last_run(database):
    return Run.objects.using(database.alias).latest("pk")


def steps(database):
    rows = last_run(database).steps.order_by("pk").values_list("name", "direction", "status")
    return [f"{name[:4]} {direction} {status}" for name, direction, status in rows]


@pytest.mark.parametrize("attributes", ["", NOT_ATOMIC])
def test_a_failed_batch_is_undone(migrated, scratch, attributes):
    before = look(scratch)
    migrated.write(
        "0004_trial", f"{INDEX}, {NO_TABLE}" if attributes else f'column("items", "x"), {NO_TABLE}', attributes
    )
    said = migrated.fail("migrate", "--auto-rollback")
    assert 'RolledBack: shop.0004_trial failed in operation 2 of 2: ProgrammingError: relation "nowhere"' in said
    assert "shop.0003_color, shop.0002_size. The database is as it was before run 2 (migrate), if the" in said
    assert "stays" not in said
    assert look(scratch) == before
    half = ["0004 down succeeded"] if attributes else []
    assert steps(scratch) == [
        "0002 up succeeded",
        "0003 up succeeded",
        "0004 up failed",
        *half,
        "0003 down succeeded",
        "0002 down succeeded",
    ]
    assert (last_run(scratch).status, said) == ("rolled_back", said)
    migrated.write("0004_trial", INDEX, attributes or NOT_ATOMIC)
    migrated.succeed("migrate")


def test_of_the_operation_that_failed_there_may_be_nothing_to_undo(migrated, scratch):
    """It is undone if it left something, such as an invalid index, and passed over if it did not."""
    before = look(scratch)
    unique = INDEX.replace("CREATE", "CREATE UNIQUE").replace("(size)", "((1))")
    with scratch.cursor() as cursor:
        cursor.execute("INSERT INTO items VALUES (1), (2)")
    for failing in (unique, INDEX.replace("(size)", "(nothing)")):
        migrated.write("0004_trial", f'column("items", "weight"), {failing}', NOT_ATOMIC)
        said = migrated.fail("migrate", "--auto-rollback")
        assert "Rolled back: shop.0004_trial, shop.0003_color, shop.0002_size." in said
        assert look(scratch) == before


def test_nothing_was_applied_before(migrated, scratch):
    before = look(scratch)
    migrated.write("0002_size", NO_TABLE)
    said = migrated.fail("migrate", "--auto-rollback")
    assert "Rolled back: nothing, because nothing was applied. The database is as it was before run 2" in said
    assert look(scratch) == before


@pytest.mark.parametrize(
    ("setting", "arguments", "undone"),
    [
        ("True", [], True),
        ("True", ["--no-auto-rollback"], False),
        ("False", [], False),
    ],
)
def test_who_decides(migrated, scratch, setting, arguments, undone):
    before = look(scratch)
    migrated.settings(f"ZERO_DOWNTIME_AUTO_ROLLBACK = {setting}\n")
    migrated.write("0004_trial", NO_TABLE)
    said = migrated.fail("migrate", *arguments)
    assert (look(scratch) == before) is undone
    assert last_run(scratch).status == ("rolled_back" if undone else "failed")
    assert ("What run 2 (migrate) applied before that stays (2 steps): rollback takes it back." in said) is not undone


@pytest.mark.parametrize(
    "failing", [NO_TABLE, 'migrations.CreateModel("Item", [("id", models.AutoField(primary_key=True))])']
)
def test_a_batch_that_cannot_be_undone_stays_whole(migrated, scratch, failing):
    before = look(scratch)["columns"]
    with scratch.cursor() as cursor:
        cursor.execute("CREATE TABLE shop_item (name text)")
    migrated.write("0003_color", 'migrations.RunSQL("ALTER TABLE items ADD COLUMN color int")')
    migrated.write("0004_trial", failing)
    said = migrated.fail("migrate", "--auto-rollback")
    assert "\nNot rolled back: shop.0003_color cannot be taken back: Raw SQL operation has no reverse." in said
    assert "applied before that stays (2 steps)." in said
    left = {"items | color | integer | False | None", "items | size | integer | False | None"}
    assert look(scratch)["columns"] - before == {*left, "shop_item | name | text | False | None"}
    assert last_run(scratch).status == "failed"


def test_rolling_back_fails_too(migrated, scratch):
    broken = 'migrations.RunSQL("ALTER TABLE items ADD COLUMN color int", "ALTER TABLE items DROP COLUMN colour")'
    migrated.write("0003_color", broken)
    migrated.write("0004_trial", NO_TABLE)
    said = migrated.fail("migrate", "--auto-rollback")
    assert '\nRolling back failed, too: shop.0003_color failed: ProgrammingError: column "colour" of' in said
    assert "\nStill there: shop.0002_size, shop.0003_color." in said
    assert steps(scratch)[-1] == "0003 down failed"
    assert last_run(scratch).status == "failed"


def test_ctrl_c_undoes_nothing(migrated, scratch):
    migrated.write("0004_trial", 'migrations.RunSQL("SELECT pg_sleep(60)", migrations.RunSQL.noop)')
    run = migrated.start("migrate", "--auto-rollback")
    while not Step.objects.using(scratch.alias).filter(name="0004_trial").exists():
        assert run.poll() is None
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    done = finish(run)
    assert done.code == 130
    assert "applied before that stays (2 steps): rollback takes it back.\n" in done.err
    assert steps(scratch) == ["0002 up succeeded", "0003 up succeeded", "0004 up interrupted"]
    assert last_run(scratch).status == "interrupted"


@pytest.mark.parametrize("attributes", ["", NOT_ATOMIC])
def test_a_batch_is_undone_in_another_session_if_that_of_the_run_was_ended(migrated, scratch, attributes):
    before = look(scratch)
    ended = 'migrations.RunSQL("SELECT pg_terminate_backend(pg_backend_pid())", migrations.RunSQL.noop)'
    migrated.write("0004_trial", f'column("items", "more"), {ended}', attributes)
    said = migrated.fail("migrate", "--auto-rollback")
    assert "The connection to the database was lost" in said
    assert "shop.0003_color, shop.0002_size. The database is as it was before run 2 (migrate), if the" in said
    assert look(scratch) == before
