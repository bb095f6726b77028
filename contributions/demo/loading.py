"""How do the rows of a demo get into the database? Through COPY, in one transaction: all of them or none.

The tables are empty, so their foreign keys and the indexes that belong to no constraint are taken off first and put
back at the end: keeping them up to date row by row takes five times as long as the rows themselves. The transaction
holds the tables exclusively, so nobody ever sees them without. A failed load leaves nothing but room for autovacuum to
free.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import closing

from django.apps import apps
from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper
from django.db.migrations.loader import MigrationLoader

from accounts.models import User
from contributions.demo import MARK, Demo
from contributions.demo.ahead import drawn
from contributions.demo.tables import COLUMNS

APPS = ("accounts", "tasks", "contributions")

PATIENCE = "SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = 0"
LOCK = f"LOCK TABLE {', '.join(COLUMNS)} IN ACCESS EXCLUSIVE MODE"
ANALYZE = f"ANALYZE {', '.join(COLUMNS)}"

# Each row is the statement that takes one off and the one that puts it back.
FOREIGN_KEYS = """
    SELECT format('ALTER TABLE %%s DROP CONSTRAINT %%I', conrelid::regclass, conname),
           format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', conrelid::regclass, conname, pg_get_constraintdef(oid))
    FROM pg_constraint
    WHERE contype = 'f' AND conrelid = ANY (%s::regclass[])
    ORDER BY conrelid::regclass::text, conname
"""
INDEXES = """
    SELECT format('DROP INDEX %%s', indexrelid::regclass), pg_get_indexdef(indexrelid)
    FROM pg_index
    WHERE indrelid = ANY (%s::regclass[]) AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
    ORDER BY indexrelid::regclass::text
"""


class Occupied(Exception):
    """The table in its argument already has rows, so nothing is loaded."""


def is_migrated() -> bool:
    """Return whether the newest migrations of the three apps are applied."""
    loader = MigrationLoader(connection)
    return all(leaf in loader.applied_migrations for app in APPS for leaf in loader.graph.leaf_nodes(app))


def loaded() -> str | None:
    """Return the ``password`` of the demo that is in the database, if there is one."""
    return next(iter(User.objects.filter(password__startswith=MARK).values_list("password", flat=True)[:1]), None)


def check_empty() -> None:
    """Raises: Occupied, if a table holds rows; superusers do not count, since one may be made before the data."""
    for app in APPS:
        for model in apps.get_app_config(app).get_models():
            rows = model._default_manager.all()
            if (rows.filter(is_superuser=False) if model is User else rows).exists():
                raise Occupied(model._meta.db_table)


def load(demo: Demo, report: Callable[[str], object]) -> Counter[str]:
    """Put ``demo`` into the empty tables.

    Args:
        report: is told now and then how far it is.

    Returns: how many rows each table got.
    Raises: Occupied.
    """
    count: Counter[str] = Counter()
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute(PATIENCE)
        cursor.execute(LOCK)
        check_empty()  # again, now under the lock
        restore = []
        for query in (FOREIGN_KEYS, INDEXES):
            cursor.execute(query, [list(COLUMNS)])
            for take_off, put_back in cursor.fetchall():
                cursor.execute(take_off)
                restore.append(put_back)
        with closing(drawn(demo)) as neighborhoods:
            for rows in neighborhoods:
                for table, lines in rows.items():
                    _copy(cursor, table, lines)
                    count[table] += lines.count(b"\n")
                report(f"{count['users']:,} of {demo.users:,} people, {count.total():,} rows")
        for number, statement in enumerate(reversed(restore), 1):  # the indexes help to check the foreign keys
            report(f"index or foreign key {number} of {len(restore)}")
            cursor.execute(statement)
        report("statistics for the query planner")
        cursor.execute(ANALYZE)
    return count


def _copy(cursor: CursorWrapper, table: str, rows: bytes) -> None:
    statement = f"COPY {table} ({COLUMNS[table]}) FROM STDIN WITH (NULL '')"
    with connection.wrap_database_errors, cursor.copy(statement) as copy:
        copy.write(rows)
