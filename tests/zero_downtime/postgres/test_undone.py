"""Is the database exactly as before, or is it said what is not, when a batch is undone?

Each operation is a step of a migrate, with nothing, the same or something else in its place. The next operation fails.
"""

import re
import sys
import uuid
from contextlib import contextmanager

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.test.utils import override_settings

from gotong_royong.zero_downtime.exceptions import RolledBack
from gotong_royong.zero_downtime.postgres.editors import schema_editor_class
from tests.conftest import _database
from tests.zero_downtime.postgres.cases import CASES
from tests.zero_downtime.postgres.conftest import is_concurrent, skip_unless_supported, sql, up, whole

pytestmark = pytest.mark.once
SOME = 5  # each fifth case is run by `make test`

FILE = """
from django.db import migrations
from tests.zero_downtime.postgres.cases import BASE, CASES

class Migration(migrations.Migration):
    dependencies = [%s]
    atomic = %s
    operations = %s
"""
FAILING = 'migrations.RunSQL("SELECT nowhere", migrations.RunSQL.noop)'
LEDGER = "zero_downtime"


class Library:
    """An app of its own whose migrations are written here."""

    def __init__(self, folder, name):
        self.migrations, self.name = folder / name / "migrations", name
        self.migrations.mkdir(parents=True)
        (self.migrations / "__init__.py").touch()
        (folder / name / "__init__.py").touch()
        (folder / name / "apps.py").write_text(
            f"from django.apps import AppConfig\nclass Library(AppConfig):\n    name, label = {name!r}, 'library'\n"
        )
        self.write("0001_base", "BASE")

    def write(self, name, operations, *, atomic=True, after=""):
        needed = f"('library', {after!r})" if after else ""
        (self.migrations / f"{name}.py").write_text(FILE % (needed, atomic, operations))
        for module in [module for module in sys.modules if module.startswith(self.name + ".migrations")]:
            del sys.modules[module]


def mostly_slow(cases):
    return [pytest.param(*case, marks=[pytest.mark.slow] * bool(n % SOME)) for n, case in enumerate(cases)]


@contextmanager
def installed(folder):
    """The library, with its first migration, as one of the installed apps."""
    name = f"library_{uuid.uuid4().hex}"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(sys, "dont_write_bytecode", True)
        made = Library(folder, name)
        with override_settings(INSTALLED_APPS=[*settings.INSTALLED_APPS, f"{name}.apps.Library"]):
            yield made
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


@pytest.fixture
def files(tmp_path):
    with installed(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def template(base, tmp_path_factory, django_db_blocker):
    """The name of a database with the library's tables and the ledger's, in which the first migration is applied."""
    with django_db_blocker.unblock(), _database() as database:
        sql(database, base[1])
        with installed(tmp_path_factory.mktemp("first")):
            migrate(database, "0001", fake=True)
        database.close()
        yield database.alias


def migrate(database, *arguments, **options):
    call_command("migrate", "library", *arguments, database=database.alias, verbosity=0, **options)


def seen(database):
    """The catalog and the rows, but for those of the ledger and of django_migrations."""
    catalog = {
        kind: {line for line in lines if LEDGER not in line and "django_migrations" not in line}
        for kind, lines in ((kind, set(map(str, lines))) for kind, lines in whole(database).items())
    }
    tables = [
        name
        for (name,) in sql(
            database,
            "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE nspname = 'public' AND relkind = 'r' ORDER BY 1",
        )
    ]
    ours = [name for name in tables if not name.startswith((LEDGER, "django_migrations"))]
    rows = {name: sorted(map(str, sql(database, f'SELECT to_jsonb(t) FROM "{name}" t'))) for name in ours}
    return catalog, rows


def ways(case):
    steps, in_the_way = CASES[case]
    yield "absent", None
    yield "same", steps
    if in_the_way:
        yield "different", in_the_way


@pytest.mark.parametrize(
    ("case", "atomic"),
    mostly_slow(
        (case, atomic) for case in CASES for atomic in (True, False) if not (atomic and is_concurrent(CASES[case][0]))
    ),
)
def test_a_batch_that_fails_after_it(server, base, template, files, case, atomic):
    skip_unless_supported(server, CASES[case][0])
    files.write("0002_case", f"CASES[{case!r}][0]", atomic=atomic, after="0001_base")
    files.write("0003_fails", f"[{FAILING}]", after="0002_case")
    whole_or_named(base[0], template, case)


@pytest.mark.parametrize("case", mostly_slow((case,) for case in CASES))
def test_an_operation_that_fails_after_it_in_no_transaction(server, base, template, files, case):
    skip_unless_supported(server, CASES[case][0])
    files.write("0002_case", f"[*CASES[{case!r}][0], {FAILING}]", atomic=False, after="0001_base")
    whole_or_named(base[0], template, case)


def whole_or_named(state, template, case):
    for way, there in ways(case):
        with _database(template) as database:
            if way == "same":
                database.SchemaEditorClass = schema_editor_class(database.SchemaEditorClass)
                up(database, state, there)
            elif there:
                sql(database, there)
            before = seen(database)
            with pytest.raises(CommandError) as raised:
                migrate(database, auto_rollback=True)
            said = str(raised.value)
            assert isinstance(raised.value, RolledBack), (way, said)
            after = seen(database)
        (catalog, rows), (catalog_now, rows_now) = before, after
        different = {line for kind, lines in catalog.items() for line in lines ^ catalog_now[kind]}
        if re.search(r"The database is as it was before run \d+", said):
            assert (different, rows_now) == (set(), rows), (way, said)
        else:
            assert "The database may not be as it was" in said, (way, said)
            assert not [line for line in different if not any(name in said for name in names(line))], (way, said)
            assert rows_now == rows or re.search("are gone|the value stays|did stays|converted", said), (way, said)


def names(line):
    """The names of indexes, constraints and columns in a line of the catalog; those of tables are in many lines."""
    return {name for name in re.findall(r"\w+", line) if "_" in name or name == "born"} - {"library_shop", "author_id"}
