"""Does a migration that says no stage take nothing away before the deploy?"""

import re

import pytest

from tests.zero_downtime.test_stages import applied

pytestmark = pytest.mark.once

THING = """migrations.CreateModel("Thing", [
    ("id", models.AutoField(primary_key=True)),
    ("name", models.CharField(max_length=10, null=True)),
    ("size", models.IntegerField(null=True)),
    ("code", models.IntegerField(null=True, db_column="kode")),
])"""
UNIQUE = 'models.UniqueConstraint(fields=["name"], name="one_name")'

# One migration each, after the others; each is judged by what was applied before the plan.
STEPS = [
    ("pre", 'migrations.AddField("thing", "color", models.IntegerField(null=True))'),
    ("pre", 'migrations.AlterField("thing", "name", models.CharField(max_length=20, null=True))'),
    ("pre", 'migrations.AlterField("thing", "name", models.TextField(null=True))'),
    ("post", 'migrations.AlterField("thing", "name", models.IntegerField(null=True))'),
    ("post", 'migrations.AlterField("thing", "name", models.CharField(max_length=10, null=True))'),
    ("post", 'migrations.AlterField("thing", "name", models.CharField(max_length=5, null=True))'),
    ("pre", 'migrations.AlterField("thing", "name", models.SlugField(max_length=15, null=True))'),
    ("pre", 'migrations.AlterField("thing", "name", models.CharField(max_length=20, null=True))'),
    ("pre", 'migrations.AlterField("thing", "size", models.BigIntegerField(null=True))'),
    ("post", 'migrations.AlterField("thing", "size", models.IntegerField(null=True))'),
    ("post", 'migrations.AlterField("thing", "size", models.PositiveIntegerField(null=True))'),
    ("pre", 'migrations.AlterField("thing", "size", models.IntegerField(null=True))'),
    ("post", 'migrations.AddField("thing", "price", models.DecimalField(max_digits=6, decimal_places=2, default=0))'),
    ("pre", 'migrations.AlterField("thing", "color", models.BigIntegerField(null=True))'),
    ("post", 'migrations.AddField("thing", "parent", models.ForeignKey("shop.thing", models.CASCADE))'),
    ("pre", 'migrations.AddField("thing", "like", models.ManyToManyField("shop.thing"))'),
    ("pre", 'migrations.AddField("thing", "rank", models.IntegerField(db_default=1))'),
    ("post", 'migrations.AlterField("thing", "rank", models.IntegerField(default=1))'),
    ("post", 'migrations.AlterField("thing", "size", models.IntegerField())'),
    ("pre", 'migrations.AlterField("thing", "size", models.IntegerField(help_text="in cm"))'),
    ("post", 'migrations.AlterField("thing", "name", models.CharField(max_length=20, null=True, unique=True))'),
    ("post", 'migrations.RenameField("thing", "size", "weight")'),
    ("pre", 'migrations.AlterField("thing", "weight", models.IntegerField(help_text="in g"))'),
    ("post", 'migrations.AlterField("thing", "weight", models.IntegerField(db_column="heavy"))'),
    ("pre", 'migrations.RenameField("thing", "code", "kind")'),
    ("post", f'migrations.AddConstraint("thing", {UNIQUE})'),
    ("pre", 'migrations.RemoveConstraint("thing", "one_name")'),
    ("post", 'migrations.AlterUniqueTogether("thing", {("name", "kind")})'),
    ("pre", 'migrations.AlterUniqueTogether("thing", set())'),
    ("post", 'migrations.RunSQL("ALTER TABLE shop_thing\\nDROP COLUMN name", migrations.RunSQL.noop)'),
    ("post", 'migrations.RunSQL(["SELECT 1", ("alter table shop_thing alter kode set not null", None)])'),
    ("pre", 'migrations.RunSQL("ALTER TABLE shop_thing ALTER kode DROP NOT NULL")'),
    ("pre", 'migrations.RunSQL("CREATE INDEX i ON shop_thing (kode); DROP INDEX i")'),
    ("pre", "migrations.RunSQL(\"/* DROP TABLE x */ SELECT 'ALTER TABLE x DROP y'; ANALYZE shop_thing\")"),
    ("post", 'migrations.RunSQL("SELECT 1; -- why\\n /* so */ DROP TABLE shop_thing")'),
    ("post", 'migrations.RunSQL("ALTER TABLE shop_thing RENAME kode TO code")'),
    ("pre", 'migrations.RunSQL("ALTER TABLE shop_thing RENAME CONSTRAINT a TO b, ALTER kode DROP DEFAULT")'),
    ("post", 'migrations.RunSQL("ALTER TABLE shop_thing ADD CONSTRAINT c UNIQUE (name)")'),
    ("pre", 'migrations.RunSQL("ALTER TABLE shop_thing ADD COLUMN c int CHECK (c > 0)")'),
    ("post", 'migrations.RunSQL("DO $$ BEGIN ALTER TABLE shop_thing DROP kode; END $$")'),
    ("post", 'migrations.RunSQL("ALTER TABLE shop_thing ALTER COLUMN kode TYPE text")'),
    ("post", 'migrations.RunSQL("ALTER TABLE shop_thing ADD COLUMN d int NOT NULL")'),
    ("pre", 'migrations.RunSQL("ALTER TABLE shop_thing ADD COLUMN d int NOT NULL DEFAULT 1, ADD e text")'),
    ("post", 'migrations.RunSQL("ALTER TABLE shop_thing ADD COLUMN d int, ALTER kode SET NOT NULL")'),
    ("post", 'migrations.RunSQL("ALTER TABLE shop_thing DISABLE TRIGGER ALL")'),
    ("post", 'migrations.RunSQL("CALL tidy()")'),
    ("post", 'migrations.RunSQL("DELETE FROM shop_thing")'),
    ("post", 'migrations.RunSQL("CREATE OR REPLACE VIEW v AS SELECT 1")'),
    ("post", 'migrations.RunSQL("CREATE TRIGGER t BEFORE INSERT ON shop_thing EXECUTE FUNCTION f()")'),
    ("pre", 'migrations.RunSQL("UPDATE shop_thing SET kode = 1; CREATE TABLE other (id int); -- DROP TABLE other")'),
    ("pre", "migrations.RunSQL(migrations.RunSQL.noop)"),
    ("pre", "migrations.RunPython(migrations.RunPython.noop)"),
    ("pre", f'{THING.replace("Thing", "Other")}, migrations.AddConstraint("other", {UNIQUE.replace("one", "an")})'),
    ("pre", 'migrations.RemoveField("other", "code")'),
    ("pre", 'migrations.AlterOrderWithRespectTo("other", "name")'),
    ("pre", 'migrations.AlterOrderWithRespectTo("other", None)'),
    ("pre", 'migrations.SeparateDatabaseAndState([], [migrations.RemoveField("thing", "kind")])'),
    ("post", 'migrations.SeparateDatabaseAndState([migrations.RunSQL("ALTER TABLE shop_thing DROP kode")])'),
    ("pre", 'migrations.RemoveField("thing", "color")'),
    ("post", 'migrations.RemoveField("thing", "weight")'),
    ("post", 'migrations.RenameModel("Thing", "Item")'),
    ("post", 'migrations.AlterModelTable("item", "stuff")'),
    ("post", 'migrations.DeleteModel("Item")'),
    ("pre", 'migrations.DeleteModel("Other")'),
]


@pytest.fixture
def things(shop):
    shop.write("0001_items", THING)
    return shop


def test_each_operation_implies_its_stage(things):
    things.succeed("migrate")
    for number, (_, operation) in enumerate(STEPS, 2):
        things.write(f"{number:04}_step", operation)
    said = re.findall(r"shop\.(\d+)_step \(up, (pre|post)-deploy\)", things.succeed("migrate", "--plan"))
    assert said == [(f"{number:04}", stage) for number, (stage, _) in enumerate(STEPS, 2)]


def test_pre_deploy_drops_nothing_and_post_deploy_does(things, scratch):
    things.succeed("migrate")
    things.write("0002_size", 'migrations.RemoveField("thing", "size")')
    things.succeed("migrate", "--pre-deploy")
    assert applied(scratch) == ["0001"]
    things.succeed("migrate", "--post-deploy")
    assert applied(scratch) == ["0001", "0002"]


def test_what_a_migration_says_holds_whatever_it_does(things, scratch):
    things.succeed("migrate")
    things.write("0002_size", 'migrations.RemoveField("thing", "size")', "stage = 'pre_deploy'")
    things.succeed("migrate", "--pre-deploy")
    assert applied(scratch) == ["0001", "0002"]


def test_on_an_empty_database_no_code_knows_anything(things, scratch):
    things.settings(
        "INSTALLED_APPS[1:1] = ['django.contrib.auth', 'django.contrib.contenttypes', 'django.contrib.sessions']\n"
    )
    things.write("0002_size", 'migrations.RemoveField("thing", "size"), migrations.RenameModel("thing", "item")')
    things.succeed("migrate", "--pre-deploy")
    assert applied(scratch) == ["0001", "0002"]


def test_tables_that_are_there_without_a_record_are_known(things, scratch):
    with scratch.cursor() as cursor:
        cursor.execute("CREATE TABLE shop_thing (id serial PRIMARY KEY, name text, size int, kode int)")
    things.write("0002_size", 'migrations.RemoveField("thing", "size")')
    things.succeed("migrate", "--pre-deploy", "--fake-initial")
    assert applied(scratch) == ["0001"]
