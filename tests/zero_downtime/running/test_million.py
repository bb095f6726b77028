"""Do the commands look up the steps that they ask for, however many the ledger has?"""

import pytest
from django.core.management import call_command

pytestmark = pytest.mark.once

OLD_RUNS = """
    WITH old AS (
        INSERT INTO zero_downtime_run (command, status, who, process, finished_at)
        SELECT 'migrate', 'succeeded', 'maria@host', 1, now() FROM generate_series(1, 2000) RETURNING id
    )
    INSERT INTO zero_downtime_step (run_id, app, name, direction, status, checksum, finished_at)
    SELECT old.id, step.app, step.name, CASE old.id % 2 WHEN 0 THEN 'down' ELSE 'up' END, 'succeeded', '', now()
    FROM old CROSS JOIN (
        SELECT app, name, min(id) AS first FROM zero_downtime_step GROUP BY app, name ORDER BY first DESC LIMIT 20
    ) AS step
    ORDER BY old.id, first
"""
READ = """
    SELECT sum(seq_tup_read)::int, sum(idx_tup_fetch)::int FROM pg_stat_user_tables
    WHERE relname IN ('zero_downtime_run', 'zero_downtime_step')
"""


@pytest.fixture
def old(copied):
    """A ledger of 40,000 steps, half of them up and half down."""
    database = copied("")
    with database.cursor() as cursor:
        cursor.execute(OLD_RUNS)
        cursor.execute("VACUUM ANALYZE zero_downtime_run, zero_downtime_step")
    return database


def read(database):
    """Return how many rows of the ledger were read one after the other, and how many by an index, so far."""
    with database.cursor() as cursor:
        is_at_once = database.pg_version >= 150000
        cursor.execute("SELECT pg_stat_force_next_flush()" if is_at_once else "SELECT pg_sleep(1)")
        cursor.execute(READ)
        return cursor.fetchone()


@pytest.mark.parametrize(
    ("command", "options"),
    [("migrate", {"verbosity": 0}), ("showmigrations", {}), ("rollback", {"steps": 3, "plan": True})],
)
def test_a_few_rows_are_read(old, command, options):
    one_by_one, by_index = read(old)
    call_command(command, database=old.alias, **options)
    after = read(old)
    assert after[0] == one_by_one
    assert after[1] - by_index < 1000
