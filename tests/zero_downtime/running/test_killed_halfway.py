"""Does the next migrate finish a migration of many operations, in no transaction, wherever it was killed?

Each operation stands behind another one, so what is there does not tell how far it came. It is killed, really, before
every third statement or commit, those of the journal included; which third differs from case to case.
"""

import pytest

from tests.zero_downtime.running.test_killed import Killer

pytestmark = [pytest.mark.once, pytest.mark.slow, pytest.mark.timeout(600)]

EVERY = 3
ID = '("id", models.BigAutoField(primary_key=True))'
BASE = (
    f'migrations.CreateModel("Author", [{ID}, ("name", models.CharField(max_length=9)), '
    '("born", models.IntegerField(null=True))]), '
    f'migrations.CreateModel("Book", [{ID}, ("author", models.ForeignKey("shop.Author", models.CASCADE)), '
    '("title", models.TextField(db_index=True))])'
)
FIRST = 'migrations.AddField("Author", "town", models.IntegerField(null=True))'
BORN = 'migrations.AddField("Author", "born", models.TextField(null=True))'
PYTHON = (
    'migrations.RunPython(lambda apps, editor: editor.execute("CREATE TABLE IF NOT EXISTS made (id int)"), '
    'lambda apps, editor: editor.execute("DROP TABLE made"))'
)
OPERATIONS = {
    "rename a model": 'migrations.RenameModel("Author", "Writer")',
    "rename a model and use it": (
        'migrations.RenameModel("Author", "Writer"), '
        'migrations.AddField("Writer", "age", models.IntegerField(null=True))'
    ),
    "rename a table": 'migrations.AlterModelTable("Author", "writers")',
    "rename a table there and back": (
        'migrations.AlterModelTable("Author", "writers"), migrations.AlterModelTable("Author", "shop_author")'
    ),
    "rename a column and use its name": f'migrations.RenameField("Author", "born", "birth"), {BORN}',
    "exchange two columns": (
        'migrations.RenameField("Author", "born", "x"), migrations.RenameField("Author", "town", "born"), '
        'migrations.RenameField("Author", "x", "town")'
    ),
    "alter a column there and back": (
        'migrations.AlterField("Author", "born", models.BigIntegerField(null=True)), '
        'migrations.AlterField("Author", "born", models.IntegerField(null=True))'
    ),
    "make and delete a model": f'migrations.CreateModel("Shop", [{ID}]), migrations.DeleteModel("Shop")',
    "remove a column and make it anew": f'migrations.RemoveField("Author", "born"), {BORN}',
    "build an index and rename its table": (
        'migrations.RunSQL("CREATE INDEX CONCURRENTLY by_born ON shop_author (born)", "DROP INDEX by_born"), '
        'migrations.AlterModelTable("Author", "writers")'
    ),
    "python and a rename": f'{PYTHON}, migrations.RenameModel("Book", "Volume")',
}


@pytest.fixture
def killer(shop, scratch, django_db_blocker):
    """Kills runs of the shop."""
    killers = []

    def ready():
        killers.append(Killer(django_db_blocker, shop.environment))
        return killers[-1]

    yield ready
    for killer in killers:
        killer.close()


@pytest.mark.parametrize("case", OPERATIONS)
def test_killed_in_one_of_many_operations(shop, scratch, killer, case):
    database = scratch.settings_dict["NAME"]
    shop.write("0001_items", BASE)
    shop.succeed("migrate")
    shop.write("0002_trial", f"{FIRST}, {OPERATIONS[case]}", "atomic = False")
    killing = killer()
    before = killing.look(database)
    made = killing.migrate(database)["made"]
    after = killing.look(database)
    assert after != before
    for kill in range(list(OPERATIONS).index(case) % EVERY, made, EVERY):
        killing.run(database, "rollback", "--yes")
        assert killing.look(database) == before, f"taken back after it was killed before statement {kill - EVERY}"
        killing.migrate(database, kill=kill)
        killing.migrate(database)
        assert killing.look(database) == after, f"killed before statement {kill}"
    assert made > 10
