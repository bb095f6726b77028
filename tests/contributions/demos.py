"""What the tests of the demo ask the database, and how they call the command."""

from io import StringIO

from django.core.management import call_command
from django.db import connection

from contributions.demo.tables import COLUMNS

# What the catalog says of the tables' constraints and indexes.
CATALOG = (
    "SELECT indexname, indexdef, NULL FROM pg_indexes WHERE schemaname = 'public' UNION ALL"
    " SELECT conname, pg_get_constraintdef(oid), convalidated FROM pg_constraint"
    " WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2"
)


def ask(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def counts():
    return {table: ask(f"SELECT count(*) FROM {table}")[0][0] for table in COLUMNS}


def digests():
    return {
        table: ask(f"SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {table} t")[0][0] for table in COLUMNS
    }


def empty():
    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {', '.join(COLUMNS)} CASCADE")


def load(*arguments, **options):
    """Call the command for 20 people and return what it prints."""
    stdout = options.pop("stdout", StringIO())
    call_command("load_demo", *(arguments or ("--users", "20")), stdout=stdout, **options)
    return stdout.getvalue()
