"""Are migrations judged on what they would find, and is it said where they are not?"""

import json
import subprocess

import pytest

NEEDED = "migrations.RunSQL('CREATE EXTENSION no_such_extension', migrations.RunSQL.noop)"
FAILING = "migrations.RunSQL('SELECT 1/0', migrations.RunSQL.noop)"
USES = "migrations.RunSQL('ALTER TABLE items ADD place geometry', 'ALTER TABLE items DROP place')"
MODEL = """migrations.CreateModel("Item", [
    ("id", models.BigAutoField(primary_key=True)), ("code", models.IntegerField(unique=True)),
    ("a", models.IntegerField()), ("b", models.IntegerField()), ("d", models.IntegerField()),
], options={"db_table": "items", "unique_together": {("a", "b")}, "constraints": [
    models.UniqueConstraint(models.F("a"), models.F("d").desc(), name="named"),
]})"""
LATER = """from gotong_royong.zero_downtime.stages import Stage
    stage = Stage.POST_DEPLOY"""
RUNS = "migrations.RunSQL('CREATE INDEX late ON items (id)', 'DROP INDEX late')"


def linted(shop, *arguments, **environment):
    """Return the rules that each migration breaks, and what is said of those that could not be judged."""
    done = shop.run("lintmigrations", *arguments, "--format=json", **environment)
    found = [json.loads(line) for line in done.out.splitlines()]
    broken = {}
    for one in found:
        if one["id"].endswith("W409"):  # of the names
            continue
        broken.setdefault(one["migration"], []).append(one["id"].removeprefix("zero_downtime."))
    assert done.code == any(one["level"] == "error" for one in found), done.err
    return broken, {one["migration"]: one["message"] for one in found if one["id"].endswith("W401")}


def commit(shop):
    for arguments in (["init", "--quiet", "--initial-branch=main"], ["add", "shop"], ["commit", "--quiet", "-m", "1"]):
        name = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *name, *arguments], check=True, cwd=shop.folder)  # noqa: S607


@pytest.mark.parametrize("broken", [NEEDED, FAILING], ids=["lacks an extension", "fails"])
@pytest.mark.parametrize("selected", ["since", "name", "app", "all", "unapplied"])
def test_a_migration_whose_ground_could_not_be_laid_is_not_blamed(shop, selected, broken):
    shop.app("beside")
    shop.write("0002_needed", broken)
    commit(shop)
    shop.write("0003_uses", USES)
    shop.write("0004_runs", RUNS)
    shop.write("0001_alone", "migrations.RunSQL('CREATE TABLE alone (id int)', 'DROP TABLE alone')", app="beside")
    shop.write("0002_index", "migrations.RunSQL('CREATE INDEX i ON alone (id)', 'DROP INDEX i')", app="beside")
    arguments = {"since": ["--since=main"], "name": ["shop", "0003"], "app": ["shop"], "all": ["--all"]}
    for _ in range(2):  # the second time, the ground of --since is a copy
        found, why = linted(shop, *arguments.get(selected, ["--unapplied"]))
        assert found["0003_uses"] == ["W401"]
        assert "shop.0002_needed (" in why["0003_uses"]
        assert "no_such_extension" in why["0003_uses"] or "division by zero" in why["0003_uses"]
        if selected != "name":
            assert found["0004_runs"].count("W401") == 1
            assert "shop.0002_needed (" in why["0004_runs"]
            assert "E301" not in found["0004_runs"]
        if selected not in {"since", "name"}:
            assert found["0002_needed"][0] == ("W401" if broken == NEEDED else "E301")
        if selected == "all":
            assert found["0002_index"] == ["E103"]


class TestSearchPath:
    """What takes all tables away from who has this search path is told, and nothing else about the path is."""

    @pytest.mark.parametrize(
        ("sql", "hides"),
        [
            ("ALTER ROLE CURRENT_USER SET search_path = elsewhere", True),
            ("ALTER ROLE {role} SET search_path TO 'elsewhere', pg_catalog", True),
            ("ALTER USER CURRENT_USER IN DATABASE {database} SET search_path TO elsewhere", True),
            ("ALTER DATABASE {database} SET search_path = elsewhere", True),
            ("-- why\nALTER DATABASE {database} SET SEARCH_PATH TO elsewhere", True),
            ("SET search_path TO elsewhere", True),
            ("SELECT pg_catalog.set_config('search_path', '', false)", True),
            ("DO $$ BEGIN EXECUTE 'SET search_path = elsewhere'; END $$", True),
            ("ALTER SCHEMA public RENAME TO elsewhere", True),
            ("ALTER ROLE CURRENT_USER SET search_path = elsewhere, public", False),
            ("ALTER DATABASE {database} SET search_path = public, elsewhere", False),
            ("SET LOCAL search_path TO elsewhere", False),
            ("SELECT set_config('search_path', '', true)", False),
            ("ALTER ROLE CURRENT_USER RESET search_path", False),
        ],
    )
    def test_it_is_told_who_no_longer_finds_the_tables(self, shop, sql, hides):
        shop.write("0001_items", MODEL)
        sql = sql.format(role="app", database='"it"')
        shop.write("0002_path", f"migrations.RunSQL({sql!r}, migrations.RunSQL.noop)")
        shop.write("0003_more", "column('items', 'more')")
        found, _ = linted(shop, "shop")
        assert ("E201" in found.get("0002_path", [])) is hides
        assert {"W401", "E301", "E303"}.isdisjoint(found.get("0002_path", []))
        if "SCHEMA" not in sql:
            assert "E301" not in found.get("0003_more", [])


class TestUnique:
    """A unique index on which old code may insert with ON CONFLICT is missed."""

    @pytest.mark.parametrize(
        ("operation", "attributes", "told"),
        [
            ("migrations.AlterField('item', 'code', models.IntegerField())", "", True),
            ("migrations.AlterUniqueTogether('item', set())", "", True),
            ("migrations.RemoveConstraint('item', 'named')", "", True),
            ("migrations.RunSQL('DROP INDEX raw', 'CREATE UNIQUE INDEX raw ON items (d)')", "", True),
            ("migrations.RunSQL('ALTER TABLE items DROP CONSTRAINT items_code_key', '')", "", True),
            ("migrations.AlterField('item', 'code', models.IntegerField())", LATER, False),
            ("migrations.RunSQL('ALTER TABLE items DROP CONSTRAINT items_code_key', '')", LATER, True),
            ("migrations.RunSQL('CREATE UNIQUE INDEX other ON items (d); DROP INDEX raw', '')", "", False),
            ("migrations.RunSQL('ALTER INDEX raw RENAME TO other', '')", "", False),
            ("migrations.RunSQL('DROP INDEX plain', '')", "", False),
            ("migrations.RemoveField('item', 'code')", "", False),
            ("migrations.DeleteModel('item')", "", False),
        ],
    )
    def test_what_code_relies_on(self, shop, operation, attributes, told):
        indexes = "CREATE UNIQUE INDEX raw ON items (d); CREATE INDEX plain ON items (d)"
        shop.write("0001_items", MODEL)
        shop.write("0002_raw", f"migrations.RunSQL({indexes!r}, 'DROP INDEX raw, plain')")
        shop.write("0003_drop", operation, attributes)
        found, _ = linted(shop, "shop", "0003")
        assert ("W418" in found.get("0003_drop", [])) is told
