"""Does a rollback take back what was done last, as it was done, and refuse what it cannot know?"""

import time

import pytest
from django.core.management import CommandError, call_command

from gotong_royong.zero_downtime.models import Run, Step
from tests.databases import look
from tests.zero_downtime.running.test_recall import FILL, INDEX, LABEL, SQUASH, forget, recorded, sql
from tests.zero_downtime.shop import finish

pytestmark = pytest.mark.once

SLOW = """migrations.RunSQL("SELECT 1", "SELECT pg_sleep(3)")"""


@pytest.fixture
def labeled(shop):
    """Two runs: the first made the tables, the second filled one of them."""
    shop.write("0002_label", LABEL)
    shop.write("0003_index", INDEX)
    shop.succeed("migrate")
    shop.write("0004_fill", FILL)
    shop.succeed("migrate")
    return shop


@pytest.fixture
def squashed(labeled):
    """What made the table is replaced, which Django records at the end of the next migrate."""
    labeled.write("0001_squash", f"{LABEL}, {INDEX}", SQUASH)
    labeled.succeed("migrate")
    return labeled


def now(database):
    labels = sql(database, "SELECT to_regclass('shop_label')") == [(None,)] or sql(database, "TABLE shop_label")
    return look(database), recorded(database), labels


def refused(shop, database, *arguments):
    """Return why the rollback was refused; it has changed nothing."""
    before = now(database)
    said = shop.fail("rollback", *arguments)
    assert now(database) == before
    return said


class TestWhichSteps:
    @pytest.mark.newest
    def test_the_last_is_the_one_that_was_done_last(self, squashed, scratch):
        """A squash, recorded last of all though done first, was taken back with its table."""
        assert sql(scratch, "SELECT name FROM django_migrations ORDER BY id DESC LIMIT 1") == [("0001_squash",)]
        squashed.succeed("rollback", "--steps", "1", "--yes")
        assert recorded(scratch) == {"0001_items", "0002_label", "0003_index", "0001_squash"}

    @pytest.mark.newest
    def test_what_was_squashed_is_found_under_the_squash(self, squashed, scratch):
        squashed.succeed("rollback", "--steps", "1", "--yes")
        squashed.succeed("rollback", "--steps", "1", "--yes")
        assert recorded(scratch) == {"0001_items"}
        assert sql(scratch, "SELECT to_regclass('shop_label')") == [(None,)]

    @pytest.mark.newest
    def test_a_run_is_the_one_that_applied_what_was_squashed(self, squashed, scratch):
        squashed.succeed("rollback", "--yes")
        assert "0004_fill" not in recorded(scratch)
        out = squashed.succeed("rollback", "--run", "1", "--plan")
        assert [line for line in out.splitlines() if "shop." in line] == ["  shop.0001_squash", "  shop.0001_items"]

    def test_a_squash_of_several_runs_is_not_taken_back_for_one_of_them(self, labeled, scratch):
        replaced = 'replaces = [("shop", "0003_index"), ("shop", "0004_fill")]'
        labeled.write("0002_squash", f"{INDEX}, {FILL}", replaced)
        labeled.succeed("migrate")
        assert "shop.0002_squash replaces what several runs applied (1, 2)" in refused(labeled, scratch, "--yes")
        labeled.succeed("rollback", "--steps", "1", "--yes")
        assert recorded(scratch) == {"0001_items", "0002_label"}

    def test_what_was_applied_before_the_ledger_comes_first(self, labeled, scratch):
        """Whatever ids Django gives its rows."""
        sql(scratch, "DELETE FROM zero_downtime_step WHERE name IN ('0001_items', '0002_label')")
        sql(scratch, "UPDATE django_migrations SET id = id + 1000 WHERE name IN ('0001_items', '0002_label')")
        for name in ("0004_fill", "0003_index", "0002_label"):
            assert labeled.succeed("rollback", "--steps", "1", "--plan").splitlines()[1] == f"  shop.{name}"
            labeled.succeed("rollback", "--steps", "1", "--yes")
        assert "The ledger knows no run that applied shop.0001_items" in refused(labeled, scratch, "--yes")
        assert sql(scratch, "SELECT to_regclass('shop_label'), to_regclass('items')") == [(None, "items")]

    def test_what_django_migrations_has_lost_counts(self, labeled, scratch):
        forget(scratch, "0004%")
        assert "  shop.0004_fill" in labeled.succeed("rollback", "--plan")
        assert "0004_fill" not in recorded(scratch)
        out = labeled.succeed("rollback", "--yes")
        assert "django_migrations has lost shop.0004_fill" in out
        assert "Took back 1 migration in run 3" in out
        assert recorded(scratch) == {"0001_items", "0002_label", "0003_index"}


class TestFiles:
    @pytest.mark.parametrize("which", [[], ["--steps", "1"], ["--steps", "2"], ["--run", "2"]])
    def test_one_that_is_gone_is_named_and_nothing_older_is_offered(self, labeled, scratch, which):
        (labeled.migrations / "0004_fill.py").unlink()
        said = refused(labeled, scratch, *which, "--yes")
        assert (
            "shop.0004_fill, which run 2 applied, is among what the rollback takes back, and its file is gone." in said
        )
        assert "Restore shop/migrations/0004_fill.py from version control" in said
        labeled.succeed("migrate", "shop", "--prune")
        assert labeled.succeed("rollback", "--steps", "1", "--plan").splitlines()[1] == "  shop.0003_index"

    def test_those_of_an_app_that_is_not_installed(self, labeled, scratch):
        sql(scratch, "UPDATE django_migrations SET app = 'mall' WHERE name = '0004_fill'")
        sql(scratch, "UPDATE zero_downtime_step SET app = 'mall' WHERE name = '0004_fill'")
        assert "No installed app has the label mall: install it again." in refused(labeled, scratch, "--yes")

    def test_nor_is_one_that_comes_before_it(self, labeled, scratch):
        """What the one that is gone has done with the table, nobody knows."""
        (labeled.migrations / "0004_fill.py").unlink()
        said = refused(labeled, scratch, "--run", "1", "--yes", "--all")
        assert (
            "shop.0004_fill, which run 2 applied, was applied after what the rollback takes back, and its file is"
            in said
        )

    def test_what_it_has_no_more_stays_and_is_told(self, shop, scratch):
        fails = "migrations.RunSQL('SELECT 1 / 0', '')"
        shop.write("0002_trial", f"{LABEL}, migrations.RunSQL('CREATE TABLE bag ()', ''), {fails}", "atomic = False")
        shop.fail("migrate")
        shop.write("0002_trial", LABEL, "atomic = False")
        out = shop.succeed("rollback", "--steps", "1", "--yes", "--accept-edited")
        assert (
            "operation 2 of shop.0002_trial, which run 1 did, stays, because the file no longer has it: table bag."
            in out
        )
        assert "Put the operation back into the file and roll back again, or drop that by hand" in out
        assert sql(scratch, "SELECT to_regclass('shop_label'), to_regclass('bag')") == [(None, "bag")]

    def test_one_that_was_edited_is_not_undone_by_its_new_text(self, labeled, scratch):
        label = Step.objects.using(scratch.alias).get(name="0004_fill")
        labeled.write("0004_fill", 'migrations.RunSQL("SELECT 1", "DELETE FROM shop_label")')
        said = refused(labeled, scratch, "--yes")
        assert "shop.0004_fill is not taken back: its file has been edited since run 2 applied it." in said
        assert f"applied: SHA-256 {label.checksum}" in said
        assert "now:     SHA-256 " in said
        assert "--accept-edited" in said
        labeled.succeed("rollback", "--yes", "--accept-edited")
        assert sql(scratch, "TABLE shop_label") == []

    def test_one_that_is_older_may_be_edited(self, labeled, scratch):
        labeled.write("0003_index", f"{INDEX}, migrations.RunSQL('SELECT 1')")
        labeled.succeed("rollback", "--yes")
        assert "0004_fill" not in recorded(scratch)


class TestFaked:
    """What was only recorded is never undone in the database."""

    @pytest.fixture
    def faked(self, labeled, scratch):
        labeled.write("0005_color", 'migrations.AddField("label", "color", models.TextField(null=True))')
        sql(scratch, "ALTER TABLE shop_label ADD COLUMN color text")
        sql(scratch, "UPDATE shop_label SET color = 'red'")
        labeled.succeed("migrate", "--fake")
        return labeled

    def test_only_its_record_goes(self, faked, scratch):
        before = now(scratch)
        assert "shop.0005_color (only its record: it was faked)" in faked.succeed("rollback", "--plan")
        assert "loses" not in faked.succeed("rollback")
        assert now(scratch) == (before[0], before[1] - {"0005_color"}, before[2])
        down = Step.objects.using(scratch.alias).get(name="0005_color", direction="down")
        assert (down.status, down.faked) == ("succeeded", True)

    def test_together_with_what_was_run(self, faked, scratch):
        faked.succeed("rollback", "--steps", "2", "--yes")
        assert recorded(scratch) == {"0001_items", "0002_label", "0003_index"}
        assert sql(scratch, "SELECT color FROM shop_label") == [("red",)]

    def test_one_without_a_way_back(self, faked, scratch):
        faked.write("0006_raw", 'migrations.RunSQL("SELECT 1")')
        faked.succeed("migrate", "--fake")
        faked.succeed("rollback")
        assert "0006_raw" not in recorded(scratch)

    def test_the_initial_ones_whose_tables_were_there(self, shop, scratch):
        sql(scratch, "CREATE TABLE shop_label (id bigint PRIMARY KEY, text text NOT NULL)")
        sql(scratch, "INSERT INTO shop_label VALUES (1, 'kept')")
        shop.write("0001_items", LABEL, "initial = True")
        shop.succeed("migrate", "--fake-initial")
        before = now(scratch)
        assert "shop.0001_items (only its record: it was faked)" in shop.succeed("rollback", "--yes", "--all")
        assert now(scratch) == (before[0], set(), before[2])

    def test_a_squash_of_both_kinds(self, faked, scratch):
        replaced = 'replaces = [("shop", "0004_fill"), ("shop", "0005_color")]'
        faked.write("0003_squash", FILL, replaced)
        faked.succeed("migrate")
        said = refused(faked, scratch, "--steps", "1", "--yes")
        assert "of what it replaces, shop.0005_color was only recorded, and the rest was run." in said

    def test_a_failed_batch_with_a_faked_step(self, shop, scratch):
        sql(scratch, "CREATE TABLE shop_label (id bigint PRIMARY KEY, text text NOT NULL)")
        sql(scratch, "INSERT INTO shop_label VALUES (1, 'kept')")
        shop.write("0001_items", LABEL, "initial = True")
        shop.write("0002_trial", 'migrations.RunSQL("SELECT 1 / 0", "")')
        assert "Rolled back: shop.0001_items." in shop.fail("migrate", "--fake-initial", "--auto-rollback")
        assert sql(scratch, "TABLE shop_label") == [(1, "kept")]


class TestOptions:
    @pytest.mark.parametrize("option", ["--to=", "--to=nonsense", "--steps=", "--run=", "--steps=all", "--run=0"])
    def test_nonsense_is_not_taken_for_the_last_run(self, labeled, scratch, option):
        before = now(scratch)
        done = labeled.run("rollback", "--yes", option)
        assert done.code != 0
        assert "Traceback" not in done.err
        assert now(scratch) == before

    @pytest.mark.parametrize("options", [{"to": ""}, {"steps": ""}, {"run": ""}, {"run": "last"}])
    def test_nor_is_it_from_python(self, scratch, options):
        call_command("migrate", "contenttypes", database=scratch.alias, verbosity=0)
        before = look(scratch)
        with pytest.raises(CommandError, match=r"The argument (to|steps|run) is empty|is not a number"):
            call_command("rollback", database=scratch.alias, yes=True, all=True, **options)
        assert look(scratch) == before

    @pytest.mark.parametrize("which", [[], ["--steps", "3"], ["--plan"]])
    def test_a_fresh_database(self, shop, scratch, which):
        assert shop.succeed("rollback", *which) == "Nothing to take back. No migration is applied.\n"
        assert sql(scratch, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == [(0,)]

    @pytest.mark.parametrize(
        ("which", "said"),
        [
            (["--to", ""], "CommandError: The argument to is empty, as with an unset shell variable."),
            (["--to", "20260101000000"], "NotUndoable: No migration has the timestamp 20260101000000."),
            (["--steps", "-1"], "NotUndoable: Cannot take back -1 steps: 0 are applied."),
            (["--steps", "0"], "NotUndoable: Cannot take back 0 steps: 0 are applied."),
            (["--run", "7"], "NotUndoable: There is no run 7."),
        ],
    )
    def test_what_makes_no_sense_is_refused_on_a_fresh_database_too(self, shop, which, said):
        assert shop.fail("rollback", *which).startswith(said)

    def test_all_that_is_applied_goes_only_if_that_is_meant(self, labeled, scratch):
        labeled.succeed("rollback", "--yes")
        name = scratch.settings_dict["NAME"]
        assert f"nothing is left of the database {name}. " in refused(labeled, scratch, "--yes")
        assert "Add --yes --all" in refused(labeled, scratch, "--all")
        assert "Took back 3 migrations" in labeled.succeed("rollback", "--yes", "--all")
        assert recorded(scratch) == set()


class TestFailed:
    """Nobody who rolls back is told to migrate."""

    @pytest.mark.parametrize(
        "backwards",
        ["ALTER TABLE shop_label DROP COLUMN nothing", "SELECT pg_terminate_backend(pg_backend_pid())"],
    )
    @pytest.mark.parametrize("attributes", ["", "atomic = False"])
    def test_by_itself(self, labeled, scratch, backwards, attributes):
        labeled.write("0005_trial", f'migrations.RunSQL("SELECT 1", "{backwards}")', attributes)
        labeled.succeed("migrate")
        said = labeled.fail("rollback", "--yes")
        assert "roll back again" in said
        assert "migrate again" not in said
        assert "0005_trial" in recorded(scratch)

    def test_for_a_lock(self, labeled, scratch):
        labeled.settings("ZERO_DOWNTIME_PATIENCE = 0.5\n")
        labeled.write("0005_color", 'migrations.AddField("label", "color", models.TextField(null=True))')
        labeled.succeed("migrate")
        with scratch.cursor() as cursor:
            cursor.execute("BEGIN; LOCK TABLE shop_label IN ACCESS SHARE MODE")
            said = labeled.fail("rollback", "--yes")
            cursor.execute("COMMIT")
        assert "and roll back again." in said
        assert "migrate again" not in said


class TestTwoAtOnce:
    @pytest.fixture
    def slow(self, labeled):
        labeled.write("0005_slow", SLOW)
        labeled.succeed("migrate")
        return labeled

    def begin(self, shop, scratch):
        """Let an operator roll back, which takes a while."""
        first = shop.start("rollback", "--yes")
        while not Step.objects.using(scratch.alias).filter(direction="down").exists():
            assert first.poll() is None, finish(first)
            time.sleep(0.02)
        return first

    def test_the_second_is_told_what_the_first_did(self, slow, scratch):
        first = self.begin(slow, scratch)
        said = slow.fail("rollback", "--yes")
        assert finish(first).code == 0
        who = Run.objects.using(scratch.alias).latest("pk").who
        assert f"While this waited for its turn, run 4 (rollback) by {who} took back shop.0005_slow." in said
        assert recorded(scratch) == {"0001_items", "0002_label", "0003_index", "0004_fill"}

    def test_a_look_beside_a_migrate_says_that_it_is_at_work(self, labeled, scratch):
        """Its step is neither failed nor half done."""
        slow = 'migrations.RunSQL("CREATE TABLE bag ()", "DROP TABLE bag"), migrations.RunSQL("SELECT pg_sleep(5)", "")'
        labeled.write("0005_slow", slow, "atomic = False")
        first = labeled.start("migrate")
        while not sql(scratch, "SELECT to_regclass('bag')")[0][0]:
            assert first.poll() is None, finish(first)
            time.sleep(0.02)
        out = labeled.succeed("rollback", "--plan")
        assert first.poll() is None
        assert "before it failed" not in out
        assert "  shop.0004_fill\n" in out
        assert "run 3 (migrate) by " in out
        assert "is at work: what it does may change this." in out
        assert finish(first).code == 0
        assert "is at work" not in labeled.succeed("rollback", "--plan")

    @pytest.mark.parametrize("table", ["run", "step", "effect"])
    def test_a_look_does_not_wait_for_who_has_locked_the_ledger(self, labeled, scratch, table):
        labeled.write("0005_bag", 'migrations.RunSQL("CREATE TABLE bag ()", "DROP TABLE bag")', "atomic = False")
        labeled.succeed("migrate")
        with scratch.cursor() as cursor:
            cursor.execute(f"BEGIN; LOCK TABLE zero_downtime_{table}")
            done = labeled.run("rollback", "--plan")
            cursor.execute("COMMIT")
        if done.code:
            assert "Another session holds the lock." in done.err
        else:
            assert "  shop.0005_bag" in done.out

    def test_a_look_waits_for_nobody(self, slow, scratch):
        first = self.begin(slow, scratch)
        assert "  shop.0005_slow" in slow.succeed("rollback", "--plan")
        assert first.poll() is None
        assert finish(first).code == 0
