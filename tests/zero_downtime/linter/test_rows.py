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
