"""Is what a failed run left by half neither walked past nor built upon, and can it be taken back or forgotten?"""

import pytest

from tests.databases import look
from tests.zero_downtime.test_recall import LABEL, forget, recorded, sql
from tests.zero_downtime.test_what_stays import BACK_FAILS, FAILS

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
