"""Is code that changes rows judged where there are rows, and is it said where it is not?"""

import pytest

from tests.zero_downtime.linter.test_ground import commit, linted

APPS = """
INSTALLED_APPS += ["django.contrib.contenttypes", "django.contrib.auth"]
"""
MODELS = """
class Kind(models.Model):
    name = models.CharField(max_length=9)
    class Meta:
        db_table = "kinds"
class Item(models.Model):
    kind = models.ForeignKey(Kind, models.CASCADE, null=True)
    state = models.CharField(max_length=9)
    level = models.IntegerField()
    class Meta:
        db_table = "items"
        permissions = [("sell_item", "Can sell")]
"""
TABLES = """
    migrations.CreateModel("Kind", [
        ("id", models.BigAutoField(primary_key=True)), ("name", models.CharField(max_length=9)),
    ], options={"db_table": "kinds"}),
    migrations.CreateModel("Item", [
        ("id", models.BigAutoField(primary_key=True)),
        ("kind", models.ForeignKey("shop.Kind", models.CASCADE, null=True)),
        ("state", models.CharField(max_length=9)), ("level", models.IntegerField()),
    ], options={"db_table": "items", "permissions": [("sell_item", "Can sell")]})
"""
CODE = """dependencies += [("contenttypes", "0002_remove_content_type_name"), ("auth", "0001_initial")]
    def work(apps, editor):
        Kind, Item = (apps.get_model("shop", name).objects for name in ("Kind", "Item"))
        Type, Permission = apps.get_model("contenttypes.ContentType"), apps.get_model("auth.Permission")
        {}
"""
RUN = "migrations.RunPython(work, migrations.RunPython.noop)"


def has_code(shop, code):
    shop.write("0003_work", RUN, CODE.format(code.replace("\n", "\n        ")))


@pytest.fixture
def rows(shop):
    """A project whose first migration makes two tables, and whose second one needs them."""
    shop.settings(APPS)
    shop.models(MODELS)
    shop.write("0001_items", TABLES)
    shop.write("0002_other", "migrations.RunSQL('CREATE TABLE other (id int)', 'DROP TABLE other')")
    return shop


EACH = "for item in Item.all(): item.save()"
OF_TYPE = f"""if not Type.objects.filter(app_label="shop", model="item").exists(): return
{EACH}"""
OF_PERMISSION = f"""if not Permission.objects.filter(codename="sell_item", name="Can sell").exists(): return
{EACH}"""
NESTED = f"""for kind in Kind.all():
    {EACH}"""
DEEPER = """for kind in Kind.all():
    for permission in Permission.objects.filter(codename="add_kind"):
        for item in Item.select_related("kind"): item.save()"""
TYPES = "for one in Type.objects.all(): one.save()"
METHOD = """for kind in Kind.all():
    for item in Item.all(): item.sell()"""


@pytest.mark.parametrize("selected", ["since", "name", "app"])
@pytest.mark.parametrize(
    ("code", "rule"),
    [(EACH, "E111"), (OF_TYPE, "E111"), (OF_PERMISSION, "E111"), (NESTED, "E111"), (DEEPER, "E111"), (TYPES, "E111"),
     (METHOD, "E310")],
    ids=["each", "of a type", "of a permission", "nested", "deeper", "types", "method"],
)  # fmt: skip
def test_code_meets_what_earlier_runs_have_left_and_rows_in_all_tables(rows, selected, code, rule):
    commit(rows)
    has_code(rows, code)
    found, _ = linted(rows, *{"since": ["--since=main"], "name": ["shop", "0003"], "app": ["shop"]}[selected])
    assert found["0003_work"] == [rule]


PAID = """for item in Item.all():
    if item.state == "paid":
        item.save()"""
FOR = """for item in Item.filter(state="paid"): item.save()"""
IN_BLOCK = """for item in Item.filter(state="paid"):
    item.level = 1
    item.save()"""
NOT_ALL = """Kind.create(name="new")
for item in Item.all():
    if item.state == "paid":
        item.delete()"""
HELPED = """def pay(item):
    item.save()
for item in Item.all():
    if item.state == "paid": pay(item)"""
EARLY = """if not Item.filter(state="paid").exists(): return
Item.all().delete()"""
OF_ALL = "Item.filter(state='paid').update(level=1)"
BATCH = """batch = []
for item in Item.all():
    batch.append(item)
    if len(batch) == 1000:
        Item.bulk_update(batch, ["level"])
        batch = []
Item.bulk_update(batch, ["level"])"""


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (PAID, 16), (FOR, 14), (IN_BLOCK, 16), (NOT_ALL, 17), (HELPED, 15), (EARLY, 15),
        (PAID.replace("paid", "1"), None), (BATCH, None), (EACH, None), (OF_ALL, None),
    ],
    ids=["if", "one line", "filter", "not all", "helped", "early", "met", "batch", "each", "update"],
)  # fmt: skip
@pytest.mark.parametrize("way", ["up", "down"])
def test_lines_that_change_rows_and_did_not_run_are_told(rows, code, line, way):
    has_code(rows, code)
    if way == "down":
        file = rows.migrations / "0003_work.py"
        file.write_text(
            file.read_text().replace(RUN, RUN.replace("work, migrations.RunPython.noop", "lambda *a: None, work"))
        )
    _, why = linted(rows, "shop", "0003")
    assert ("0003_work" in why) is bool(line)
    if line:
        assert f" changes rows in line {line}, which did not run" in why["0003_work"]


KINDS = "SELECT 1 FROM kinds WHERE kinds.id = items.kind_id"


@pytest.mark.parametrize(
    ("sql", "rules"),
    [
        ("UPDATE items SET level = 0 WHERE id > 0", ["E111"]),
        ("UPDATE items SET level = 0 WHERE level IS NOT NULL", ["E111"]),
        ("UPDATE items SET level = 0 WHERE level >= 0", ["E111"]),
        ("UPDATE items SET level = 0 WHERE level <> 3 OR state IS NULL", ["E111"]),
        ("UPDATE items SET level = 0 WHERE id IN (SELECT id FROM items)", ["E111"]),
        (f"UPDATE items SET level = 0 WHERE EXISTS ({KINDS})", ["E111"]),
        ("DELETE FROM items WHERE id > 0", ["E111"]),
        ("DELETE FROM items USING kinds WHERE kinds.id = kind_id", ["E111"]),
        ("WITH gone AS (DELETE FROM items WHERE id > 0 RETURNING *) SELECT count(*) FROM gone", ["E111"]),
        ("UPDATE items SET level = 0 WHERE state = 'paid'", ["E111"]),
        ("DO $$ BEGIN UPDATE items SET level = 0 WHERE id > 0; END $$", ["E111"]),
        ("UPDATE items SET level = 0 WHERE level > 5000", ["W401"]),
        ("UPDATE items SET level = 0 WHERE level = 4711", ["W401"]),
        ("DELETE FROM items WHERE level < -3;", ["W401"]),
        ("UPDATE items SET state = 'x' WHERE id = 3", []),
        ("UPDATE items SET state = 'x' WHERE id = 4711", []),
        ("UPDATE items SET state = 'x' WHERE items.id = 4711;", []),
        ("DELETE FROM items WHERE id IN (1, 4711)", []),
        ("DELETE FROM items WHERE \"id\" IN (4711, 4712)", []),
        ("INSERT INTO kinds (name) VALUES ('one')", []),
        ("INSERT INTO kinds (name) SELECT state FROM items", ["E111"]),
        ("DROP TABLE IF EXISTS absent", ["W401"]),
        ("ALTER TABLE items ADD c text NOT NULL", ["E203", "E306", "E304"]),
    ],
)  # fmt: skip
def test_a_statement_is_judged_by_what_it_does_to_rows(rows, sql, rules):
    rows.write("0002_other", "migrations.RunSQL('CREATE INDEX by_level ON items (level)', 'DROP INDEX by_level')")
    rows.write("0003_work", f"migrations.RunSQL({sql!r}, migrations.RunSQL.noop)")
    found, _ = linted(rows, "shop", "0003")
    assert found.get("0003_work", []) == rules


ONE_KEY = "apps.get_model('shop', 'Kind')(pk=4711, name='x').save()"
UNTIL_NONE = """while ids := list(Item.filter(level__gt=0).values_list("pk", flat=True)[:3]):
    Item.filter(pk__in=ids).update(level=0)"""


@pytest.mark.parametrize(
    ("code", "rules"),
    [
        (EACH, ["E111"]), (EACH.replace("Item.all()", "Item.iterator()"), ["E111"]),
        (EACH.replace("Item.all()", "list(Item.all())[:4]"), []), (EACH.replace("save", "delete"), ["E111"]),
        ("for item in Item.all()[:5]: item.save()", ["E111"]), (ONE_KEY, []), (UNTIL_NONE, ["E111"]),
        ("for item in Item.filter(level__lt=5): item.save()", []),
        ("Item.filter(level=4711).update(level=1)", ["W401"]),
        ("Item.bulk_update(list(Item.all()), ['level'])", ["E111"]),
        ("for n in range(20): Kind.get_or_create(name=str(n))", []), ("Item.filter(pk=4711).update(level=1)", []),
    ],
)  # fmt: skip
def test_code_is_judged_by_what_it_does_to_rows(rows, code, rules):
    rows.write("0002_other", "migrations.RunSQL('CREATE INDEX by_level ON items (level)', 'DROP INDEX by_level')")
    has_code(rows, code)
    found, _ = linted(rows, "shop", "0003")
    assert found.get("0003_work", []) == rules


def test_what_earlier_runs_have_left_is_not_the_migration_s_doing(rows):
    key = "models.ForeignKey('auth.Permission', models.CASCADE)"
    make = f"migrations.CreateModel('Grant', [('id', models.BigAutoField(primary_key=True)), ('one', {key})])"
    needs = 'dependencies += [("auth", "0001_initial")]'
    rows.write("0002_other", "migrations.AddField('kind', 'note', models.TextField(null=True))")
    rows.write("0003_work", f"{make}, migrations.SeparateDatabaseAndState([migrations.RunSQL([], [])])", needs)
    found, _ = linted(rows, "shop")
    assert "0003_work" not in found
