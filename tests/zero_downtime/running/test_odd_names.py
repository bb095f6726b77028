"""Does the engine do with names that need quotes what it does with others?"""

import json

import pytest

from gotong_royong.zero_downtime.models import Backfill
from tests.databases import look
from tests.zero_downtime.items import RUN_BACKFILL

pytestmark = pytest.mark.once

NAMES = ["order", "Note", "dotted.name", "it's a\\{brace}"]
MODELS = """
class User(models.Model):
    id = models.AutoField(primary_key=True)
    size = models.IntegerField(null=True, db_column={column!r})

    class Meta:
        db_table = {name!r}
"""
TABLE = """migrations.CreateModel("User", [
    ("id", models.AutoField(primary_key=True)), ("name", models.TextField(db_column="user")),
], {{"db_table": {name!r}}})"""
CHANGES = """
    migrations.AddField("user", "size", models.IntegerField(null=True, db_column={column!r})),
    migrations.AddIndex("user", models.Index(fields=["size"], name={index!r})),
    migrations.AddConstraint("user", models.UniqueConstraint(fields=["name", "size"], name={unique!r})),
    migrations.AddConstraint("user", models.CheckConstraint(condition=models.Q(size__gt=0), name={check!r})),
    migrations.CreateModel("Group", [("id", models.AutoField(primary_key=True)), (
        "user", models.ForeignKey("user", models.CASCADE, db_column={column!r}),
    )], {{"db_table": {group!r}}})
"""
FILL = """
from django.db.models import Q
from gotong_royong.zero_downtime.backfills import BackfillDeclaration

class Fill(BackfillDeclaration):
    model = "shop.User"
    where = Q(size=None)
    update = {"size": 1}
"""
FAILS = "migrations.RunSQL('SELECT 1 / 0', '')"


@pytest.fixture(params=NAMES)
def odd(shop, request):
    name = request.param
    words = {key: f"{name} {key}" for key in ("column", "index", "unique", "check", "group")}
    shop.models(MODELS.format(name=name, **words))
    shop.write("0001_items", TABLE.format(name=name))
    shop.changes = CHANGES.format(**words)
    shop.table = name
    return shop


@pytest.mark.parametrize("attributes", ["", "atomic = False"])
def test_up_again_and_down(odd, scratch, attributes):
    odd.succeed("migrate")
    before = look(scratch)
    odd.write("0002_size", f"{odd.changes}, {FAILS}", attributes)
    assert "is as it was before run 2" in odd.fail("migrate", "--auto-rollback")
    assert look(scratch) == before
    odd.write("0002_size", odd.changes, attributes)
    planned = json.loads(odd.succeed("migrate", "--plan", "--format", "json"))
    assert [table["rows"] for table in planned[0]["tables"]] == [0]
    odd.succeed("migrate")
    after = look(scratch)
    with scratch.cursor() as cursor:
        cursor.execute(f"""INSERT INTO "{odd.table}" ("user", "{odd.table} column") VALUES ('maria', 1)""")
    assert f"{odd.table} column" in odd.succeed("rollback", "--steps", "1", "--plan")
    odd.succeed("rollback", "--steps", "1", "--yes")
    assert look(scratch) == before
    odd.succeed("migrate")
    with scratch.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE name = '0002_size'; TRUNCATE zero_downtime_run CASCADE")
    odd.succeed("migrate")
    assert look(scratch) == after


def test_a_backfill(odd, scratch):
    (odd.migrations.parent / "backfills.py").write_text(FILL)
    odd.write("0002_size", odd.changes)
    (odd.migrations / "0003_fill.py").write_text(RUN_BACKFILL)
    odd.succeed("migrate", "shop", "0002")
    with scratch.cursor() as cursor:
        cursor.execute(f"""INSERT INTO "{odd.table}" ("user") SELECT i::text FROM generate_series(1, 50) i""")
    odd.succeed("migrate")
    assert Backfill.objects.using(scratch.alias).get().status == "succeeded"
    with scratch.cursor() as cursor:
        cursor.execute(f"""SELECT sum("{odd.table} column") FROM "{odd.table}" """)
        assert cursor.fetchone() == (50,)
