"""Does the database itself refuse what the schema forbids, whoever asks?"""

import pytest
from django.db import DataError, IntegrityError, connection, transaction

from tests.test_schema import COLUMNS

USER, OTHER, SKILL, TASK, CONTRIBUTION, EVIDENCE = (f"00000000-0000-4000-8000-{n:012}" for n in range(1, 7))
NOBODY = "00000000-0000-4000-8000-000000000999"

# One row each, in an order that foreign keys allow.
ROWS = f"""
INSERT INTO users (id, username, email, password_hash) VALUES ('{USER}', 'maria', 'maria@example.org', '!');
INSERT INTO users (id, username, email, password_hash) VALUES ('{OTHER}', 'budi', 'budi@example.org', '!');
INSERT INTO profiles (user_id) VALUES ('{USER}');
INSERT INTO skills (id, name) VALUES ('{SKILL}', 'carpentry');
INSERT INTO user_skills (user_id, skill_id) VALUES ('{USER}', '{SKILL}');
INSERT INTO vouches (voucher_id, vouchee_id, skill_id, markov_vouch_id) VALUES ('{USER}', '{OTHER}', '{SKILL}', 'v1');
INSERT INTO reputation_cache (user_id, reputation_score) VALUES ('{USER}', 1);
INSERT INTO tasks (id, creator_id, assignee_id, title) VALUES ('{TASK}', '{USER}', '{OTHER}', 'Mend a roof');
INSERT INTO task_skills (task_id, skill_id) VALUES ('{TASK}', '{SKILL}');
INSERT INTO task_assignments (task_id, user_id, assigned_by_id) VALUES ('{TASK}', '{OTHER}', '{USER}');
INSERT INTO contributions (id, user_id, task_id, title, markov_contribution_id)
VALUES ('{CONTRIBUTION}', '{OTHER}', '{TASK}', 'Mended a roof', 'c1');
INSERT INTO evidence (id, contribution_id, evidence_type, file_url, timestamp)
VALUES ('{EVIDENCE}', '{CONTRIBUTION}', 'gps_verification', 'https://example.org/1', now());
INSERT INTO witnesses (evidence_id, witness_name) VALUES ('{EVIDENCE}', 'Siti');
INSERT INTO verifications (contribution_id, verifier_id, outcome) VALUES ('{CONTRIBUTION}', '{USER}', 'approved');
INSERT INTO webhook_events (event_id, event_type, payload) VALUES ('e1', 'por_evidence', '{{}}');
INSERT INTO webhook_failures (event_type, payload) VALUES ('por_evidence', '{{}}');
"""

CHECKS = {
    "check_not_self_vouch": "UPDATE vouches SET vouchee_id = voucher_id",
    "check_weight_hint": "UPDATE vouches SET weight_hint = 'huge'",
    "check_proficiency": "UPDATE user_skills SET proficiency_level = 1.01",
    "check_status": "UPDATE tasks SET status = 'lost'",
    "check_difficulty": "UPDATE tasks SET difficulty = 'Easy'",
    "check_assignment_status": "UPDATE task_assignments SET status = ''",
    "check_verification_status": "UPDATE contributions SET verification_status = 'approved'",
    "check_evidence_type": "UPDATE evidence SET evidence_type = 'rumor'",
    "check_latitude": "UPDATE evidence SET latitude = -90.00000001",
    "check_longitude": "UPDATE evidence SET longitude = 180.00000001",
    "check_outcome": "UPDATE verifications SET outcome = 'maybe'",
    "check_score": "UPDATE verifications SET evidence_quality_score = -0.01",
    "check_webhook_status": "UPDATE webhook_events SET status = 'open'",
}

UNIQUE = {
    "users_pkey": f"UPDATE users SET id = '{USER}', markov_user_id = NULL",
    "idx_users_username": "UPDATE users SET username = 'maria'",
    "idx_users_email": "UPDATE users SET email = 'maria@example.org'",
    "idx_users_markov_id": "UPDATE users SET markov_user_id = 'gotong_royong:1'",
    "profiles_pkey": f"INSERT INTO profiles (user_id) VALUES ('{USER}')",
    "idx_skills_name": "INSERT INTO skills (name) VALUES ('carpentry')",
    "user_skills_pkey": f"INSERT INTO user_skills (user_id, skill_id) VALUES ('{USER}', '{SKILL}')",
    "task_skills_pkey": f"INSERT INTO task_skills (task_id, skill_id) VALUES ('{TASK}', '{SKILL}')",
    "idx_vouches_unique": "INSERT INTO vouches (voucher_id, vouchee_id, skill_id)"
    " SELECT voucher_id, vouchee_id, skill_id FROM vouches",
    "idx_vouches_markov_id": "INSERT INTO vouches (voucher_id, vouchee_id, markov_vouch_id)"
    " SELECT voucher_id, vouchee_id, 'v1' FROM vouches",
    "reputation_cache_pkey": f"INSERT INTO reputation_cache (user_id, reputation_score) VALUES ('{USER}', 2)",
    "idx_contributions_markov_id": "INSERT INTO contributions (user_id, title, markov_contribution_id)"
    " SELECT user_id, title, 'c1' FROM contributions",
    "idx_webhook_events_event_id": "INSERT INTO webhook_events (event_id, event_type, payload)"
    " SELECT event_id, event_type, payload FROM webhook_events",
}

# What is left without a row when this row goes, and which column is set to null where a row stays.
ON_DELETE = {
    "users": (
        USER,
        "users profiles user_skills vouches reputation_cache tasks task_skills task_assignments verifications",
        "contributions.task_id",
    ),
    "skills": (SKILL, "skills user_skills task_skills", "vouches.skill_id"),
    "tasks": (TASK, "tasks task_skills task_assignments", "contributions.task_id"),
    "contributions": (CONTRIBUTION, "contributions evidence witnesses verifications", ""),
    "evidence": (EVIDENCE, "evidence witnesses", ""),
}


@pytest.fixture
def execute(run_sql):
    """Run a statement on a database that holds a row in every table, constraints checked at once."""
    with connection.cursor() as cursor:
        cursor.execute(ROWS)
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    return run_sql


def refused(execute, statement, *values):
    """Return the SQLSTATE and the name of the constraint that the database refuses ``statement`` with."""
    with pytest.raises(IntegrityError) as caught, transaction.atomic():
        execute(statement, *values)
    return caught.value.__cause__.sqlstate, caught.value.__cause__.diag.constraint_name


@pytest.mark.parametrize("name", CHECKS)
def test_check(execute, name):
    assert refused(execute, CHECKS[name]) == ("23514", name)


@pytest.mark.parametrize("name", UNIQUE)
def test_unique(execute, name):
    assert refused(execute, UNIQUE[name]) == ("23505", name)


def test_all_checks_and_unique_indexes_are_tried_here(execute):
    checks = execute(
        "SELECT conname FROM pg_constraint WHERE contype = 'c' AND conrelid::regclass::text = ANY(%s)", list(COLUMNS)
    )
    assert {name for (name,) in checks} == set(CHECKS)
    unique = execute(
        """
        SELECT indexrelid::regclass::text FROM pg_index
        WHERE indisunique AND indrelid::regclass::text = ANY(%s)
        AND NOT (indisprimary AND EXISTS (
            SELECT FROM pg_attrdef WHERE adrelid = indrelid AND adnum = indkey[0] AND indrelid <> 'users'::regclass
        ))
        """,
        list(COLUMNS),
    )
    assert {name for (name,) in unique} == set(UNIQUE)


def test_a_vouch_without_a_skill_may_be_repeated(execute):
    for _ in range(2):
        execute("INSERT INTO vouches (voucher_id, vouchee_id) VALUES (%s, %s)", USER, OTHER)
    assert execute("SELECT count(*) FROM vouches") == [(3,)]


@pytest.mark.parametrize("table", COLUMNS)
def test_not_null(execute, table):
    columns = execute(
        """
        SELECT attname FROM pg_attribute
        WHERE attrelid = %s::regclass AND attnum > 0 AND attnotnull AND NOT attisdropped
        """,
        table,
    )
    assert columns
    for (column,) in columns:
        assert refused(execute, f'UPDATE {table} SET "{column}" = NULL')[0] == "23502", column


def test_foreign_keys(execute):
    keys = execute(
        """
        SELECT conname, conrelid::regclass::text, attname FROM pg_constraint
        JOIN pg_attribute ON attrelid = conrelid AND attnum = conkey[1]
        WHERE contype = 'f' AND conrelid::regclass::text = ANY(%s)
        """,
        list(COLUMNS),
    )
    assert len(keys) == 20
    for name, table, column in keys:
        assert refused(execute, f"UPDATE {table} SET {column} = '{NOBODY}'") == ("23503", name)


@pytest.mark.parametrize("table", ON_DELETE)
def test_a_raw_delete_is_followed(execute, table):
    key, emptied, set_null = ON_DELETE[table]
    execute(f"DELETE FROM {table} WHERE id = %s", key)
    left = {name for name in COLUMNS if execute(f"SELECT 1 FROM {name} LIMIT 1")}
    kept = {"users"} if table == "users" else set()  # the other user
    assert left == set(COLUMNS) - set(emptied.split()) | kept
    if set_null:
        child, column = set_null.split(".")
        assert execute(f"SELECT {column} FROM {child}") == [(None,)]


def test_the_enum_takes_its_values_only(execute):
    with (
        pytest.raises(DataError, match='invalid input value for enum contribution_type: "gossip"'),
        transaction.atomic(),
    ):
        execute("UPDATE contributions SET contribution_type = 'gossip'")
