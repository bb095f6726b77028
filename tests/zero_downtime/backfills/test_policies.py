"""Is a role from which policies hide rows refused a backfill of all of them?"""

import pytest

from gotong_royong.zero_downtime.models import Backfill
from tests.zero_downtime.items import FILL, ITEM, RUN_BACKFILL
from tests.zero_downtime.running.test_permissions import grant, guest  # noqa: F401

TABLE = """migrations.CreateModel("Item", [
    ("id", models.IntegerField(primary_key=True)), ("size", models.IntegerField(null=True)),
], {"db_table": "items"})"""
HIDE = "ALTER TABLE items ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON items USING (id < 3)"


@pytest.fixture
def hidden(shop, scratch, guest):  # noqa: F811
    """A shop whose items are hidden from the role that migrates, but for two."""
    shop.models(ITEM)
    (shop.migrations.parent / "backfills.py").write_text(FILL)
    shop.write("0001_items", TABLE)
    shop.write("0002_size", f'migrations.RunSQL("INSERT INTO items SELECT generate_series(1, 10); {HIDE}", "")')
    shop.succeed("migrate")
    grant(scratch, *(f"ALL ON {what} public" for what in ("SCHEMA", "ALL TABLES IN SCHEMA", "ALL SEQUENCES IN SCHEMA")))
    (shop.migrations / "0003_fill.py").write_text(RUN_BACKFILL)
    return shop


def filled(database):
    with database.cursor() as cursor:
        cursor.execute("SELECT count(size) FROM items")
        return cursor.fetchone()[0]


@pytest.mark.parametrize("rows", [100_000, 0])
def test_it_is_refused_in_a_migration_and_by_command(hidden, scratch, guest, rows):  # noqa: F811
    hidden.settings(f"ZERO_DOWNTIME_BACKFILL_INLINE = {rows}\n")
    if rows:
        said = hidden.fail("migrate", DATABASE_URL=guest)
    else:
        hidden.succeed("migrate", DATABASE_URL=guest)
        said = hidden.fail("backfill", "run", "shop.fill", DATABASE_URL=guest)
    assert 'query would be affected by row-level security policy for table "items"' in said
    assert filled(scratch) == 0
    row = Backfill.objects.using(scratch.alias).get()
    assert (row.status, row.verified_at) == ("failed", None)
    hidden.succeed("backfill", "retry", "shop.fill")
    hidden.succeed("backfill", "run", "shop.fill")
    assert filled(scratch) == 10
