"""Does no row's data get into the ledger with an error of PostgreSQL?"""

import pytest

from gotong_royong.zero_downtime.models import Run

pytestmark = pytest.mark.once

SECRET = "maria@example.org"
ROWS = f'migrations.RunSQL("CREATE TABLE people AS SELECT \'{SECRET}\'::text AS email FROM generate_series(1, 2)", "")'
UNIQUE = 'migrations.RunSQL("CREATE UNIQUE INDEX one_email ON people (email)", "DROP INDEX one_email")'
CONCURRENTLY = UNIQUE.replace("INDEX one", "INDEX CONCURRENTLY one")
CHECK = "migrations.RunSQL(\"ALTER TABLE people ADD CHECK (email = '')\", '')"
NULL = 'migrations.RunSQL("INSERT INTO people SELECT email FROM people; ALTER TABLE people ADD size int NOT NULL", "")'
CODE = """migrations.RunPython(lambda apps, editor: editor.execute(
    "DO $$ BEGIN RAISE 'no' USING DETAIL = (SELECT 'it is ' || max(email) FROM people); END $$"
))"""


@pytest.mark.parametrize(
    ("failing", "attributes"),
    [(UNIQUE, ""), (CONCURRENTLY, "atomic = False"), (CHECK, ""), (NULL, ""), (CODE, ""), (CODE, "atomic = False")],
)
@pytest.mark.parametrize("options", [[], ["--auto-rollback"]])
def test_no_detail_is_kept(shop, scratch, failing, attributes, options):
    shop.write("0001_items", ROWS)
    shop.succeed("migrate")
    shop.write("0002_fails", failing, attributes)
    said = shop.fail("migrate", *options)
    assert "shop.0002_fails failed in operation 1 of 1" in said
    assert Run.objects.using(scratch.alias).latest("pk").error.startswith("shop.0002_fails failed in operation 1 of 1")
    with scratch.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM (SELECT r::text FROM zero_downtime_run r UNION ALL SELECT s::text FROM "
            "zero_downtime_step s UNION ALL SELECT e::text FROM zero_downtime_effect e WHERE step_id IN "
            "(SELECT id FROM zero_downtime_step WHERE name <> '0001_items')) AS told (text) WHERE text LIKE %s",
            [f"%{SECRET}%"],
        )
        assert cursor.fetchone() == (0,)
