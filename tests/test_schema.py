"""Does the migrated database hold the fifteen tables as the schema page lists them, name for name?"""

import pytest
from django.apps import apps
from django.db import connection, models

from tests.catalog import fingerprint

# table: column | type | nn where not null | default
COLUMNS = {
    "users": """
        id | uuid | nn | gen_random_uuid()
        username | character varying(50) | nn |
        email | character varying(255) | nn |
        password_hash | character varying(255) | nn |
        markov_user_id | character varying(100) | |
        created_at | timestamp with time zone | nn | now()
        updated_at | timestamp with time zone | nn | now()
        is_active | boolean | nn | true
        is_staff | boolean | nn | false
        is_superuser | boolean | nn | false
        last_login | timestamp with time zone | |
    """,
    "profiles": """
        user_id | uuid | nn |
        bio | text | |
        location | character varying(255) | |
        avatar_url | text | |
    """,
    "skills": """
        id | uuid | nn | gen_random_uuid()
        name | character varying(100) | nn |
        category | character varying(50) | |
        description | text | |
        created_at | timestamp with time zone | nn | now()
    """,
    "user_skills": """
        user_id | uuid | nn |
        skill_id | uuid | nn |
        proficiency_level | numeric(3,2) | | 0.00
        endorsements_count | integer | | 0
        created_at | timestamp with time zone | nn | now()
        updated_at | timestamp with time zone | nn | now()
    """,
    "vouches": """
        id | uuid | nn | gen_random_uuid()
        voucher_id | uuid | nn |
        vouchee_id | uuid | nn |
        skill_id | uuid | |
        weight_hint | character varying(20) | |
        message | text | |
        markov_vouch_id | character varying(100) | |
        created_at | timestamp with time zone | nn | now()
    """,
    "reputation_cache": """
        user_id | uuid | nn |
        reputation_score | numeric(10,2) | nn |
        tier | character varying(50) | |
        contributions_count | integer | | 0
        vouches_received | integer | | 0
        cached_at | timestamp with time zone | | now()
    """,
    "tasks": """
        id | uuid | nn | gen_random_uuid()
        creator_id | uuid | nn |
        assignee_id | uuid | |
        title | character varying(200) | nn |
        description | text | |
        status | character varying(20) | nn | 'open'::character varying
        difficulty | character varying(20) | |
        location | character varying(255) | |
        estimated_hours | numeric(5,2) | |
        metadata | jsonb | |
        created_at | timestamp with time zone | nn | now()
        completed_at | timestamp with time zone | |
    """,
    "task_skills": """
        task_id | uuid | nn |
        skill_id | uuid | nn |
        created_at | timestamp with time zone | nn | now()
    """,
    "task_assignments": """
        id | uuid | nn | gen_random_uuid()
        task_id | uuid | nn |
        user_id | uuid | nn |
        assigned_by_id | uuid | |
        assigned_at | timestamp with time zone | | now()
        completed_at | timestamp with time zone | |
        status | character varying(20) | | 'active'::character varying
    """,
    "contributions": """
        id | uuid | nn | gen_random_uuid()
        user_id | uuid | nn |
        task_id | uuid | |
        contribution_type | contribution_type | nn | 'task_completion'::contribution_type
        title | character varying(200) | nn |
        description | text | |
        evidence_url | text | |
        verification_status | character varying(20) | nn | 'pending'::character varying
        markov_contribution_id | character varying(100) | |
        metadata | jsonb | |
        created_at | timestamp with time zone | nn | now()
    """,
    "evidence": """
        id | uuid | nn | gen_random_uuid()
        contribution_id | uuid | nn |
        evidence_type | character varying(50) | nn |
        file_url | text | nn |
        media_hash | character varying(128) | |
        timestamp | timestamp with time zone | nn |
        latitude | numeric(10,8) | |
        longitude | numeric(11,8) | |
        metadata | jsonb | |
        created_at | timestamp with time zone | nn | now()
    """,
    "witnesses": """
        id | uuid | nn | gen_random_uuid()
        evidence_id | uuid | nn |
        witness_id | character varying(100) | |
        witness_name | character varying(255) | nn |
        relationship | character varying(50) | |
        statement | text | |
        created_at | timestamp with time zone | nn | now()
    """,
    "verifications": """
        id | uuid | nn | gen_random_uuid()
        contribution_id | uuid | nn |
        verifier_id | uuid | nn |
        outcome | character varying(20) | nn |
        evidence_quality_score | numeric(3,2) | |
        notes | text | |
        created_at | timestamp with time zone | nn | now()
    """,
    "webhook_events": """
        id | uuid | nn | gen_random_uuid()
        event_id | character varying(50) | nn |
        event_type | character varying(50) | nn |
        payload | jsonb | nn |
        status | character varying(20) | | 'pending'::character varying
        attempts | integer | | 0
        last_attempt_at | timestamp with time zone | |
        error_message | text | |
        created_at | timestamp with time zone | nn | now()
    """,
    "webhook_failures": """
        id | uuid | nn | gen_random_uuid()
        event_id | character varying(50) | |
        event_type | character varying(50) | nn |
        payload | jsonb | nn |
        error_message | text | |
        status_code | integer | |
        attempts | integer | | 0
        last_attempt_at | timestamp with time zone | |
        created_at | timestamp with time zone | nn | now()
    """,
}

# table: index (columns)
INDEXES = {
    "users": """
        UNIQUE idx_users_username (username)
        UNIQUE idx_users_email (email)
        UNIQUE idx_users_markov_id (markov_user_id)
    """,
    "profiles": "",
    "skills": """
        UNIQUE idx_skills_name (name)
        idx_skills_category (category)
    """,
    "user_skills": """
        idx_user_skills_skill (skill_id)
        idx_user_skills_proficiency (proficiency_level DESC)
    """,
    "vouches": """
        UNIQUE idx_vouches_unique (voucher_id, vouchee_id, skill_id) WHERE (skill_id IS NOT NULL)
        UNIQUE idx_vouches_markov_id (markov_vouch_id)
        idx_vouches_voucher (voucher_id)
        idx_vouches_vouchee (vouchee_id)
        idx_vouches_skill (skill_id)
        idx_vouches_created (created_at DESC)
    """,
    "reputation_cache": """
        idx_reputation_cache_score (reputation_score DESC)
        idx_reputation_cache_tier (tier)
        idx_reputation_cache_cached_at (cached_at)
    """,
    "tasks": """
        idx_tasks_creator (creator_id)
        idx_tasks_assignee (assignee_id)
        idx_tasks_status (status)
        idx_tasks_created (created_at DESC)
        idx_tasks_metadata USING gin (metadata)
        idx_tasks_open_skills (status) WHERE ((status)::text = 'open'::text)
    """,
    "task_skills": "idx_task_skills_skill (skill_id)",
    "task_assignments": """
        idx_task_assignments_task (task_id)
        idx_task_assignments_user (user_id)
        idx_task_assignments_status (status)
    """,
    "contributions": """
        UNIQUE idx_contributions_markov_id (markov_contribution_id)
        idx_contributions_user_status (user_id, verification_status)
        idx_contributions_user_recent (user_id, created_at DESC)
        idx_contributions_task (task_id)
        idx_contributions_type (contribution_type)
        idx_contributions_status (verification_status)
        idx_contributions_created (created_at DESC)
        idx_contributions_metadata USING gin (metadata)
    """,
    "evidence": """
        idx_evidence_contribution (contribution_id)
        idx_evidence_type (evidence_type)
        idx_evidence_hash (media_hash)
        idx_evidence_timestamp ("timestamp" DESC)
        idx_evidence_location (latitude, longitude)
        idx_evidence_metadata USING gin (metadata)
    """,
    "witnesses": """
        idx_witnesses_evidence (evidence_id)
        idx_witnesses_witness_id (witness_id)
    """,
    "verifications": """
        idx_verifications_contribution (contribution_id)
        idx_verifications_verifier (verifier_id)
        idx_verifications_outcome (outcome)
        idx_verifications_created (created_at DESC)
    """,
    "webhook_events": """
        UNIQUE idx_webhook_events_event_id (event_id)
        idx_webhook_events_status (status)
        idx_webhook_events_type (event_type)
        idx_webhook_events_created (created_at DESC)
    """,
    "webhook_failures": """
        idx_webhook_failures_type (event_type)
        idx_webhook_failures_created (created_at DESC)
    """,
}


def lines(text):
    return {" ".join(line.split()) for line in text.splitlines() if line.strip()}


@pytest.mark.parametrize("table", COLUMNS)
def test_columns(run_sql, table):
    rows = run_sql(
        """
        SELECT attname, format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN 'nn' ELSE '' END,
               coalesce(pg_get_expr(adbin, adrelid), '')
        FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped
        """,
        table,
    )
    assert {" ".join(" | ".join(row).split()) for row in rows} == lines(COLUMNS[table])


@pytest.mark.parametrize("table", INDEXES)
def test_indexes(run_sql, table):
    rows = run_sql("SELECT indexdef FROM pg_indexes WHERE tablename = %s AND indexname NOT LIKE '%%_pkey'", table)
    shorten = (
        definition.replace("CREATE UNIQUE INDEX", "UNIQUE")
        .replace("CREATE INDEX ", "")
        .replace(f" ON public.{table} USING btree", "")
        .replace(f" ON public.{table} USING", " USING")
        for (definition,) in rows
    )
    assert set(shorten) == lines(INDEXES[table])


def test_every_index_is_valid_and_every_constraint_validated(run_sql):
    assert run_sql("SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid OR NOT indisready") == []
    assert run_sql("SELECT conname FROM pg_constraint WHERE NOT convalidated") == []


def test_no_column_list_has_two_indexes(run_sql):
    twice = run_sql(
        """
        SELECT indrelid::regclass::text FROM pg_index WHERE indrelid::regclass::text = ANY(%s)
        GROUP BY indrelid, indkey::text, pg_get_expr(indpred, indrelid) HAVING count(*) > 1
        """,
        list(COLUMNS),
    )
    assert twice == []


def test_composite_primary_keys(run_sql):
    for table, columns in (("user_skills", "(user_id, skill_id)"), ("task_skills", "(task_id, skill_id)")):
        [(definition,)] = run_sql(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'p' AND conrelid = %s::regclass", table
        )
        assert definition == f"PRIMARY KEY {columns}"


def test_native_enum_holds_the_values_of_the_choices(run_sql):
    labels = run_sql("SELECT unnest(enum_range(NULL::contribution_type))::text")
    assert [label for (label,) in labels] == apps.get_model("contributions.Contribution").Type.values


def test_every_foreign_key_says_in_the_database_what_django_says_in_python(run_sql):
    actions = {"c": models.CASCADE, "n": models.SET_NULL}
    found = {
        (table, column): actions.get(action)
        for table, column, action in run_sql(
            """
            SELECT conrelid::regclass::text, attname, confdeltype FROM pg_constraint
            JOIN pg_attribute ON attrelid = conrelid AND attnum = conkey[1] WHERE contype = 'f'
            """
        )
    }
    said = {
        (model._meta.db_table, field.column): field.remote_field.on_delete
        for model in apps.get_models()
        if model._meta.db_table in COLUMNS
        for field in model._meta.local_fields
        if field.remote_field
    }
    assert len(said) == 20
    assert {key: found[key] for key in said} == said


def test_a_choice_is_checked_by_the_database_as_django_offers_it():
    for model in apps.get_models():
        conditions = {
            lookup.removesuffix("__in"): values
            for constraint in model._meta.constraints
            if isinstance(constraint, models.CheckConstraint)
            for lookup, values in (child for child in constraint.condition.children if isinstance(child, tuple))
        }
        for field in model._meta.local_fields:
            if field.choices and field.name in conditions:
                assert conditions[field.name] == [value for value, _ in field.flatchoices], f"{model}.{field.name}"


@pytest.mark.django_db
def test_the_fingerprint_sees_what_it_compares():
    with connection.cursor() as cursor:
        found = fingerprint(cursor)
    assert {kind: bool(lines) for kind, lines in found.items()} == dict.fromkeys(found, True)
    assert any("idx_contributions_metadata" in line for line in found["indexes"])
