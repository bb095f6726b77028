"""A table with two rows, what a trial migration does to it, and what a rollback says of that."""

from tests.databases import look
from tests.zero_downtime.running.test_recall import recorded, sql

THING = """migrations.CreateModel("Thing", [
    ("id", models.BigAutoField(primary_key=True)),
    ("name", models.TextField()),
    ("at", models.DateTimeField(null=True)),
    ("price", models.DecimalField(max_digits=10, decimal_places=2, null=True)),
    ("weight", models.IntegerField(null=True)),
])"""
TWO = """
    INSERT INTO shop_thing (name, at, price, weight)
    VALUES ('a', '2026-03-07 12:00', 1.5, 1), ('bcd', NULL, 2.25, NULL)
"""
NOT_TOLD = ": what is lost is not known"
TAGS = "ManyToManyField(to='shop.tag')"
TAG = 'migrations.CreateModel("Tag", [("id", models.BigAutoField(primary_key=True))])'


def field(name, kind):
    return f'migrations.AddField("thing", "{name}", models.{kind})'


def alter(name, kind):
    return f'migrations.AlterField("thing", "{name}", models.{kind})'


def raw(forwards, backwards):
    return f'migrations.RunSQL("""{forwards}""", """{backwards}""")'


CODE = """
def backwards(apps, editor):
    pass
noop = migrations.RunPython.noop
class Own(migrations.operations.base.Operation):
    reduces_to_sql = False
    def state_forwards(self, app_label, state): pass
    def database_forwards(self, *arguments): pass
    def database_backwards(self, *arguments): pass
    def describe(self): return "Own operation"
"""


def trial(shop, database, operations, data="", table="shop_thing"):
    """Migrate two rows of a table, and then change the data."""
    shop.write("0002_trial", operations)
    path = shop.migrations / "0002_trial.py"
    path.write_text(path.read_text().replace("\nclass Migration", f"{CODE}\nclass Migration"))
    shop.succeed("migrate")
    sql(database, f"{TWO.replace('shop_thing', table)}; {data}")


def rows(database):
    tables = [name for (name,) in sql(database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    theirs = [name for name in tables if not name.startswith(("zero_downtime", "django"))]
    return {name: sql(database, f'SELECT t::text FROM "{name}" t ORDER BY 1') for name in theirs}


def told(out):
    """Return what is said of the steps, without the steps."""
    return [line.strip() for line in out.splitlines() if line.startswith("    ")]


def now(database):
    return look(database), recorded(database), rows(database), sql(database, "SELECT count(*) FROM zero_downtime_run")
