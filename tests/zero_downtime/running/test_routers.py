"""Is a run recorded on the database that it changes, whatever the project's routers say of our tables?"""

import pytest
from django.conf import settings

from gotong_royong.zero_downtime.models import Effect, Run
from tests.databases import look
from tests.zero_downtime.items import FILL, ITEM, RUN_BACKFILL
from tests.zero_downtime.test_stages import applied

pytestmark = pytest.mark.once

ROUTER = """
class Router:
    def allow_migrate(self, db, app_label, **hints):
        return None if app_label == "shop" else False

    def db_for_read(self, model, **hints):
        return "elsewhere" if model._meta.app_label == "zero_downtime" else None

    db_for_write = db_for_read
"""
SETTINGS = """
DATABASE_ROUTERS = ["shop.routing.Router"]
DATABASES["elsewhere"] = {**DATABASES["default"], "HOST": "127.0.0.1", "PORT": 1}
"""
FAILS = 'column("items", "size"), migrations.RunSQL("SELECT 1 / 0", "")'


@pytest.fixture
def routed(shop):
    (shop.migrations.parent / "routing.py").write_text(ROUTER)
    programs = str(settings.ZERO_DOWNTIME_POSTGRESQL_PROGRAMS or "")
    shop.settings(f"{SETTINGS}ZERO_DOWNTIME_POSTGRESQL_PROGRAMS = {programs!r} or None\n")
    return shop


def test_runs_are_recorded_where_a_router_forbids_it(routed, scratch, tmp_path):
    routed.succeed("migrate", "--backup", str(tmp_path))
    before = look(scratch)
    assert Run.objects.using(scratch.alias).get().backup
    routed.write("0002_size", FAILS, "atomic = False")
    assert "shop.0002_size failed in operation 2 of 2" in routed.fail("migrate")
    assert Effect.objects.using(scratch.alias).exists()
    routed.write("0002_size", 'column("items", "size"), migrations.RunSQL("SELECT 1", "")', "atomic = False")
    routed.succeed("migrate")
    assert applied(scratch) == ["0001", "0002"]
    assert "run 3" in routed.succeed("showmigrations")
    routed.succeed("rollback", "--yes")
    assert look(scratch) == before


def test_a_backfill_is_done_and_recorded(routed, scratch):
    routed.models(ITEM)
    (routed.migrations.parent / "backfills.py").write_text(FILL)
    routed.write(
        "0001_items",
        """migrations.CreateModel("Item", [
        ("id", models.IntegerField(primary_key=True)), ("size", models.IntegerField(null=True)),
    ], {"db_table": "items"})""",
    )
    routed.write("0002_size", 'migrations.RunSQL("INSERT INTO items SELECT generate_series(1, 10)", "")')
    (routed.migrations / "0003_fill.py").write_text(RUN_BACKFILL)
    routed.succeed("migrate")
    with scratch.cursor() as cursor:
        cursor.execute("SELECT count(*), sum(size) FROM items")
        assert cursor.fetchone() == (10, 10)
    assert "shop.fill" in routed.succeed("backfill", "list")
    assert "succeeded" in routed.succeed("backfill", "show", "shop.fill")
