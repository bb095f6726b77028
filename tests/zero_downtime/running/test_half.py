"""Is what a failed run left by half neither walked past nor built upon, and can it be taken back or forgotten?"""

import pytest

from tests.databases import look
from tests.zero_downtime.running.test_recall import LABEL, forget, recorded, sql
from tests.zero_downtime.running.test_what_stays import BACK_FAILS, FAILS

pytestmark = pytest.mark.once

COLOR = 'migrations.AddField("label", "color", models.TextField(null=True))'
RENAME = 'migrations.RenameModel("Label", "Tag")'
NOT_ATOMIC = "atomic = False"


@pytest.fixture
def labeled(shop):
    shop.write("0002_label", LABEL)
    shop.succeed("migrate")
    return shop


def fail_in(shop, *operations, name="0003_half"):
    """Let a migration fail after these operations, in no transaction."""
    shop.write(name, ", ".join([*operations, FAILS]), NOT_ATOMIC)
    shop.fail("migrate")


class TestWaysBack:
    """What a half stands on is not taken back under it: the half goes first."""

    @pytest.mark.parametrize("operation", [COLOR, RENAME])
    @pytest.mark.parametrize(
        "back",
        [
            "migrate shop zero --no-input",
            "migrate shop 0001_items --no-input",
            "rollback --run 1 --yes --all",
            "rollback --steps 2 --yes",
        ],
    )
    def test_each_takes_the_half_first(self, labeled, scratch, operation, back):
        fail_in(labeled, operation)
        out = labeled.succeed(*back.split())
        assert out.index("Unapplying shop.0003_half... OK") < out.index("Unapplying shop.0002_label... OK")
        assert sql(scratch, "SELECT to_regclass('shop_label'), to_regclass('shop_tag')") == [(None, None)]
        labeled.write("0003_half", operation, NOT_ATOMIC)
        out = labeled.succeed("migrate")
        assert "half" not in out.replace("0003_half", "")
        assert recorded(scratch) == {"0001_items", "0002_label", "0003_half"}

    def test_going_back_to_what_is_before_it_takes_it_back(self, labeled, scratch):
        was = look(scratch)
        fail_in(labeled, COLOR)
        assert "shop.0003_half (down" in labeled.succeed("migrate", "shop", "0002_label", "--plan")
        assert "Unapplying shop.0003_half... OK" in labeled.succeed("migrate", "shop", "0002_label")
        assert look(scratch) == was
        assert "half done" not in labeled.succeed("showmigrations")

    def test_going_on_is_not_going_back(self, labeled, scratch):
        fail_in(labeled, COLOR)
        labeled.write("0003_half", COLOR, NOT_ATOMIC)
        assert "Applying shop.0003_half... OK" in labeled.succeed("migrate", "shop", "0003_half")

    def test_that_of_another_app_goes_too(self, labeled, scratch):
        labeled.app("mall")
        key = 'migrations.CreateModel("Shelf", [("id", models.BigAutoField(primary_key=True))])'
        labeled.write("0001_shelf", key, app="mall")
        labeled.succeed("migrate")
        needs = 'models.ForeignKey("mall.Shelf", models.CASCADE, null=True)'
        more = f'{NOT_ATOMIC}\n    dependencies.append(("mall", "0001_shelf"))'
        labeled.write("0003_half", f'migrations.AddField("label", "shelf", {needs}), {FAILS}', more)
        labeled.fail("migrate")
        out = labeled.succeed("migrate", "mall", "zero", "--no-input")
        assert out.index("Unapplying shop.0003_half... OK") < out.index("Unapplying mall.0001_shelf... OK")
        assert recorded(scratch) == {"0001_items", "0002_label"}
        assert "half done" not in labeled.succeed("showmigrations")

    def test_where_what_it_stands_on_is_gone_that_is_said(self, labeled, scratch):
        """Another tool took it back."""
        fail_in(labeled, COLOR)
        forget(scratch, "0002%")
        sql(scratch, "UPDATE zero_downtime_step SET direction = 'down' WHERE name = '0002_label'")
        said = labeled.fail("rollback", "--plan")
        assert "shop.0003_half is half done, and cannot be taken back while shop.0002_label, which it needs, is" in said
        assert "migrate shop 0002_label" in said


class TestHalfTakenBack:
    @pytest.fixture
    def half(self, labeled):
        labeled.write("0003_half", f"{BACK_FAILS}, {COLOR}", NOT_ATOMIC)
        labeled.succeed("migrate")
        labeled.fail("rollback", "--yes")
        return labeled

    @pytest.mark.parametrize("further", [True, False])
    def test_nothing_is_applied_over_it(self, half, scratch, further):
        if further:
            half.write("0004_bag", 'migrations.RunSQL("CREATE TABLE bag ()", "DROP TABLE bag")')
        was = look(scratch)
        said = half.fail("migrate")
        assert "shop.0003_half is half taken back by run 3, which failed: rollback takes back the rest." in said
        assert look(scratch) == was
        half.write("0003_half", f'migrations.RunSQL("SELECT 1", "SELECT 1"), {COLOR}', NOT_ATOMIC)
        half.succeed("rollback", "--yes", "--accept-edited")
        half.succeed("migrate")


class TestInserted:
    """Django's contenttypes puts an operation after each RenameModel, on the way up."""

    @pytest.fixture
    def renamed(self, shop):
        shop.settings("INSTALLED_APPS.insert(1, 'django.contrib.contenttypes')\n")
        shop.models("class Label(models.Model):\n    text = models.TextField()")
        shop.write("0002_label", LABEL)
        shop.succeed("migrate")
        shop.models("class Tag(models.Model):\n    text = models.TextField()")
        color = 'migrations.AddField("tag", "color", models.TextField(null=True))'
        fail_in(shop, RENAME, color)
        return shop

    def kinds(self, database):
        return sql(database, "SELECT model FROM django_content_type WHERE app_label = 'shop'")

    def test_it_is_taken_back_with_the_one_before(self, renamed, scratch):
        assert self.kinds(scratch) == [("tag",)]
        assert "  shop.0003_half (what run 2 did before it failed)\n" in renamed.succeed("rollback", "--plan")
        renamed.succeed("rollback", "--yes")
        assert sql(scratch, "SELECT to_regclass('shop_label'), to_regclass('shop_tag')") == [("shop_label", None)]
        assert ("label",) in self.kinds(scratch)

    def test_it_is_not_done_again(self, renamed, scratch):
        plan = renamed.succeed("migrate", "--plan")
        assert "half done: goes on after operation 2" in plan
        assert "RENAME" not in plan
        renamed.write("0003_half", f"{RENAME}, {COLOR.replace('label', 'tag')}", NOT_ATOMIC)
        renamed.succeed("migrate")
        assert self.kinds(scratch) == [("tag",)]

    def test_auto_rollback_takes_it_back(self, renamed, scratch):
        renamed.succeed("rollback", "--yes")
        assert "Rolled back: shop.0003_half" in renamed.fail("migrate", "--auto-rollback")
        assert ("label",) in self.kinds(scratch)


class TestFiles:
    """A half whose file is not what it was, or is gone."""

    def test_one_that_is_gone_is_shown_and_can_be_forgotten(self, labeled, scratch):
        fail_in(labeled, COLOR)
        (labeled.migrations / "0003_half.py").unlink()
        assert "shop.0003_half is half done by run 2, which failed, and its file is gone: restore it" in (
            labeled.succeed("showmigrations")
        )
        assert "or forget it: rollback --run 2 --accept-edited" in labeled.succeed("showmigrations", "shop")
        assert "0003_half" not in labeled.succeed("showmigrations", "zero_downtime")
        was = look(scratch)
        said = labeled.fail("rollback", "--yes")
        assert "forget it: rollback --run 2 --accept-edited." in said
        assert "--prune" not in said
        out = labeled.succeed("rollback", "--run", "2", "--accept-edited")
        assert (
            "operation 1 of shop.0003_half, which run 2 did, stays, because the file no longer has it: column color"
            in out
        )
        assert "operation 2" not in out
        assert look(scratch) == was
        assert "0003_half" not in labeled.succeed("showmigrations")
        assert "shop.0002_label" in labeled.succeed("rollback", "--plan")

    def test_one_that_was_edited_does_not_go_on(self, labeled):
        fail_in(labeled, COLOR)
        labeled.write("0003_half", COLOR.replace("color", "size"), NOT_ATOMIC)
        plan = labeled.succeed("migrate", "--plan")
        assert "half done, and edited since: refused until the file says again what was done" in plan
        assert "goes on" not in plan
        shown = labeled.succeed("showmigrations")
        assert (
            "half done by run 2, which failed, and its file was edited since: put what was done back into it" in shown
        )
        assert "goes on" not in shown

    def test_of_one_without_a_reverse_no_way_back_is_promised(self, labeled):
        fail_in(labeled, 'migrations.RunSQL("CREATE TABLE bag ()")')
        shown = labeled.succeed("showmigrations")
        assert "migrate goes on after operation 1; rollback cannot take it back, because it has no reverse" in shown
        assert "rollback takes it back" not in shown
        assert "has no reverse" in labeled.fail("rollback", "--yes")


class TestLostRows:
    """What only looks says what the real command would do."""

    def test_rollback_names_the_losses(self, labeled, scratch):
        sql(scratch, "INSERT INTO shop_label (text) VALUES ('a')")
        forget(scratch, "0002%")
        assert "loses 1 row of shop_label" in labeled.succeed("rollback", "--steps", "1", "--plan")
        assert recorded(scratch) == {"0001_items"}

    def test_what_migrate_only_records_is_not_shown_as_to_be_done(self, labeled, scratch):
        forget(scratch, "0002%")
        plan = labeled.succeed("migrate", "--plan")
        assert "shop.0002_label (up, pre-deploy, only recorded)" in plan
        assert "-- django_migrations has lost this; the ledger knows that it is applied" in plan
        assert "CREATE TABLE" not in plan
