"""Does --unapplied say how large the tables are in the configured database, and judge all the same?"""

import json

import psycopg
import pytest

INDEX = "migrations.RunSQL('CREATE INDEX late ON items (id)', 'DROP INDEX late')"
FILLED = "INSERT INTO items SELECT generate_series(1, {})"


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        (f"{FILLED.format(120000)}; ANALYZE items", "items has about 120,000 rows (4"),
        (f"{FILLED.format(1)}; ANALYZE items", "items has about 1 row (8192 bytes)"),
        ("TRUNCATE items; VACUUM items", "items has about 0 rows (0 bytes)"),
        (FILLED.format(10), "items has rows that no ANALYZE has counted (8192 bytes)"),
        ("CREATE TABLE parts (id int) PARTITION BY RANGE (id); ALTER TABLE items RENAME TO part; DROP TABLE part;"
         "CREATE TABLE items (id int) PARTITION BY RANGE (id);"
         "CREATE TABLE p1 PARTITION OF items FOR VALUES FROM (0) TO (51);"
         f"CREATE TABLE p2 PARTITION OF items FOR VALUES FROM (51) TO (201); {FILLED.format(200)}; ANALYZE items",
         "items has about 200 rows (16 kB)"),
        ("DROP TABLE items", None),
    ],
    ids=["many", "one", "none", "unknown", "partitions", "absent"],
)  # fmt: skip
def test_a_violation_is_told_with_the_rows_of_its_table(shop, sql, said):
    shop.succeed("migrate")
    shop.write("0002_late", INDEX)
    with psycopg.connect(shop.address, autocommit=True) as session:
        for statement in sql.split(";"):
            session.execute(statement)
    for selected in ("--unapplied", "shop"):
        done = shop.run("lintmigrations", selected, "--format=json")
        (found,) = [one for one in map(json.loads, done.out.splitlines()) if one["id"] == "zero_downtime.E103"]
        assert (found["level"], done.code) == ("error", 1)
        if said and selected == "--unapplied":
            assert said in found["message"]
            assert found["message"].endswith(" in the configured database.")
        else:
            assert "configured database" not in found["message"]
