"""Is applied before a deploy what may be, after it the rest, and an impossible order explained?"""

import pytest
from django.db.migrations.recorder import MigrationRecorder

pytestmark = pytest.mark.once

AFTER = "stage = 'post_deploy'"


@pytest.fixture
def staged(shop):
    shop.write("0002_size", 'column("items", "size")')
    shop.write("0003_drop_size", 'migrations.RunSQL("ALTER TABLE items DROP COLUMN size")', AFTER)
    return shop


def applied(database):
    return sorted(name[:4] for app, name in MigrationRecorder(database).applied_migrations() if app == "shop")


def test_before_and_after(staged, scratch):
    assert "shop.0003_drop_size (up, post-deploy)" in staged.succeed("migrate", "--plan")
    staged.succeed("migrate", "--pre-deploy")
    assert applied(scratch) == ["0001", "0002"]
    assert "No migrations to apply." in staged.succeed("migrate", "--pre-deploy")
    staged.succeed("migrate", "--post-deploy")
    assert applied(scratch) == ["0001", "0002", "0003"]


def test_all_in_their_order(staged, scratch):
    staged.write("0004_color", 'column("items", "color")')
    staged.succeed("migrate")
    assert applied(scratch) == ["0001", "0002", "0003", "0004"]


@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_what_must_wait_names_the_chain(staged, scratch, plan):
    staged.write("0004_color", 'column("items", "color")')
    staged.write("0005_weight", 'column("items", "weight")')
    said = staged.fail("migrate", "--pre-deploy", *plan)
    assert said == (
        "ImpossibleStage: Not applied, because it must run before the deploy but needs a step that must run after one:"
        "\n"
        "  shop.0004_color needs shop.0003_drop_size\n"
        "  shop.0005_weight needs shop.0004_color needs shop.0003_drop_size\n"
        "Run migrate --post-deploy once the code of that step runs everywhere, then --pre-deploy again.\n"
    )
    assert applied(scratch) == ([] if plan else ["0001", "0002"])


def test_both_at_once(staged):
    done = staged.run("migrate", "--pre-deploy", "--post-deploy")
    assert done.code == 2
    assert "not allowed with argument" in done.err


def test_what_says_no_stage_has_that_of_the_setting(staged, scratch):
    staged.write("0002_size", 'column("items", "size")', "stage = 'pre_deploy'")
    staged.settings("ZERO_DOWNTIME_DEFAULT_STAGE = 'post_deploy'\n")
    said = staged.fail("migrate", "--pre-deploy")
    assert "\n  shop.0002_size needs shop.0001_items\n" in said
    assert applied(scratch) == []
    staged.succeed("migrate", "--post-deploy")
    assert applied(scratch) == ["0001", "0002", "0003"]


def test_no_stage_at_all(staged, scratch):
    staged.write("0003_drop_size", "", "stage = 'after'")
    said = staged.fail("migrate", "--pre-deploy")
    assert said == (
        "ImpossibleStage: shop.0003_drop_size has stage 'after'. "
        "Write 'pre_deploy' or 'post_deploy' instead, or remove it.\n"
    )
    staged.write("0003_drop_size", "")
    staged.settings("ZERO_DOWNTIME_DEFAULT_STAGE = 'later'\n")
    said = staged.fail("migrate", "--pre-deploy")
    assert said == (
        "ImpossibleStage: ZERO_DOWNTIME_DEFAULT_STAGE is 'later'. "
        "Write 'pre_deploy' or 'post_deploy' instead, or remove it.\n"
    )
    assert applied(scratch) == []
