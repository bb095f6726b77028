"""Which tables does the demo fill, and in which order does every row find what it refers to?"""

Row = tuple[object, ...]
Rows = dict[str, list[Row]]

COLUMNS = {
    "skills": "id, name, category, description, created_at",
    "users": "id, username, email, password_hash, is_active, last_login, created_at, updated_at",
    "profiles": "user_id, bio, location, avatar_url",
    "user_skills": "user_id, skill_id, proficiency_level, endorsements_count, created_at, updated_at",
    "vouches": "id, voucher_id, vouchee_id, skill_id, weight_hint, message, markov_vouch_id, created_at",
    "reputation_cache": "user_id, reputation_score, tier, contributions_count, vouches_received, cached_at",
    "tasks": "id, creator_id, assignee_id, title, description, status, difficulty, location, estimated_hours, metadata,"
    " created_at, completed_at",
    "task_skills": "task_id, skill_id, created_at",
    "task_assignments": "id, task_id, user_id, assigned_by_id, assigned_at, completed_at, status",
    "contributions": "id, user_id, task_id, contribution_type, title, description, evidence_url, verification_status,"
    " markov_contribution_id, metadata, created_at",
    "evidence": "id, contribution_id, evidence_type, file_url, media_hash, timestamp, latitude, longitude, metadata,"
    " created_at",
    "witnesses": "id, evidence_id, witness_id, witness_name, relationship, statement, created_at",
    "verifications": "id, contribution_id, verifier_id, outcome, evidence_quality_score, notes, created_at",
    "webhook_events": "id, event_id, event_type, payload, status, attempts, last_attempt_at, error_message, created_at",
    "webhook_failures": "id, event_id, event_type, payload, error_message, status_code, attempts, last_attempt_at,"
    " created_at",
}


def nothing() -> Rows:
    """Return no rows for each table."""
    return {table: [] for table in COLUMNS}


def text(rows: list[Row]) -> bytes:
    """Write ``rows`` as COPY reads them, NULL as nothing; so no value may be empty, nor hold a tab or a newline."""
    lines = ["\t".join(["" if value is None else str(value) for value in row]) + "\n" for row in rows]
    return "".join(lines).replace("\\", "\\\\").encode()
