"""The rows of the demo: the same each time, and they fit together."""

import hashlib
from datetime import UTC, datetime

import pytest
from django.apps import apps
from django.contrib.auth import authenticate
from django.db import connection

from accounts.models import User
from contributions import demo
from contributions.demo import ahead, loading
from contributions.demo.tables import COLUMNS, text
from tests.contributions.demos import ask, counts, digests, empty, load

pytestmark = pytest.mark.once

# What must find no row in any demo, and a statement after which it must find some.
RULES = {
    "a completed task has somebody who did it, and an end after its start": (
        "SELECT FROM tasks WHERE (status = 'completed') <> (completed_at IS NOT NULL)"
        " OR completed_at <= created_at OR status = 'completed' AND assignee_id IS NULL",
        "UPDATE tasks SET completed_at = created_at WHERE status = 'completed'",
    ),
    "an open task waits for somebody": (
        "SELECT FROM tasks WHERE status = 'open' AND assignee_id IS NOT NULL",
        "UPDATE tasks SET assignee_id = creator_id WHERE status = 'open'",
    ),
    "nobody is assigned what they asked for": (
        "SELECT FROM tasks WHERE creator_id = assignee_id",
        "UPDATE tasks SET creator_id = assignee_id WHERE status = 'completed'",
    ),
    "who has a task was assigned to it once, and until it was completed": (
        "SELECT FROM tasks t WHERE status IN ('assigned', 'in_progress', 'completed') AND 1 <> ("
        " SELECT count(*) FROM task_assignments a WHERE a.task_id = t.id AND a.user_id = t.assignee_id"
        " AND a.status = CASE t.status WHEN 'completed' THEN 'completed' ELSE 'active' END"
        " AND a.assigned_at > t.created_at AND a.completed_at IS NOT DISTINCT FROM t.completed_at)",
        "UPDATE task_assignments SET status = 'reassigned'",
    ),
    "who gave a task back had it before": (
        "SELECT FROM task_assignments former JOIN task_assignments a USING (task_id) WHERE former.status = 'reassigned'"
        " AND a.status <> 'reassigned' AND (former.user_id = a.user_id OR former.assigned_at >= a.assigned_at)",
        "UPDATE task_assignments SET assigned_at = now() WHERE status = 'reassigned'",
    ),
    "every task names one to three skills": (
        "SELECT FROM tasks t WHERE (SELECT count(*) FROM task_skills WHERE task_id = t.id) NOT BETWEEN 1 AND 3",
        "DELETE FROM task_skills",
    ),
    "everybody has three or four skills": (
        "SELECT FROM users u WHERE (SELECT count(*) FROM user_skills WHERE user_id = u.id) NOT BETWEEN 3 AND 4",
        "DELETE FROM user_skills",
    ),
    "what was done for a task was mostly done by its assignee": (
        "SELECT FROM contributions c JOIN tasks t ON t.id = c.task_id"
        " HAVING avg((c.user_id = t.assignee_id)::int) < 0.7",
        "UPDATE tasks SET assignee_id = NULL; UPDATE tasks SET assignee_id = creator_id",
    ),
    "work starts when the task is there and the person too": (
        "SELECT FROM contributions c JOIN users u ON u.id = c.user_id LEFT JOIN tasks t ON t.id = c.task_id"
        " WHERE c.created_at <= u.created_at OR c.created_at <= t.created_at",
        "UPDATE tasks SET created_at = now()",
    ),
    "the status of a contribution is what its verifications say": (
        "SELECT FROM contributions c LEFT JOIN verifications v ON v.contribution_id = c.id WHERE"
        " coalesce(v.outcome, 'pending') <> CASE verification_status WHEN 'verified' THEN 'approved'"
        " ELSE verification_status END",
        "UPDATE verifications SET outcome = 'pending'",
    ),
    "nobody verifies their own work, or the same work twice": (
        "SELECT FROM verifications v JOIN contributions c ON c.id = v.contribution_id"
        " GROUP BY c.id, verifier_id HAVING verifier_id = c.user_id OR count(*) > 1",
        "UPDATE verifications SET verifier_id = c.user_id FROM contributions c WHERE c.id = contribution_id",
    ),
    "a verification comes after the work, from somebody who has joined": (
        "SELECT FROM verifications v JOIN contributions c ON c.id = v.contribution_id JOIN users u"
        " ON u.id = verifier_id WHERE v.created_at <= c.created_at OR v.created_at <= u.created_at",
        "UPDATE verifications SET created_at = '2023-02-02'",
    ),
    "evidence is taken before the report, and stored after it": (
        "SELECT FROM evidence e JOIN contributions c ON c.id = contribution_id"
        " WHERE e.timestamp > c.created_at OR e.created_at <= c.created_at",
        "UPDATE evidence SET timestamp = created_at",
    ),
    "evidence lies in Indonesia, if it says where": (
        "SELECT FROM evidence WHERE latitude NOT BETWEEN -11 AND 6 OR longitude NOT BETWEEN 95 AND 141"
        " OR (latitude IS NULL) <> (longitude IS NULL) OR evidence_type = 'gps_verification' AND latitude IS NULL",
        "UPDATE evidence SET latitude = longitude / 2, longitude = latitude",
    ),
    "a witness speaks after the evidence is there": (
        "SELECT FROM witnesses w JOIN evidence e ON e.id = evidence_id WHERE w.created_at <= e.created_at",
        "UPDATE witnesses SET created_at = '2023-02-02'",
    ),
    "a witness with an account bears its name": (
        "SELECT FROM witnesses w JOIN users u ON u.id::text = witness_id"
        " WHERE lower(replace(witness_name, ' ', '.')) <> regexp_replace(username, '\\.\\d+$', '')",
        "UPDATE witnesses SET witness_name = 'Somebody'",
    ),
    "who vouches has joined, and so has the other": (
        "SELECT FROM vouches v JOIN users u ON u.id IN (voucher_id, vouchee_id) WHERE v.created_at <= u.created_at",
        "UPDATE vouches SET created_at = '2023-02-01'",
    ),
    "endorsements are counted": (
        "SELECT FROM user_skills s WHERE endorsements_count <> ("
        " SELECT count(*) FROM vouches v WHERE vouchee_id = s.user_id AND v.skill_id = s.skill_id)",
        "DELETE FROM vouches WHERE skill_id IS NOT NULL",
    ),
    "what the cache of reputations counts is there": (
        "SELECT FROM reputation_cache r WHERE"
        " contributions_count <> (SELECT count(*) FROM contributions c WHERE c.user_id = r.user_id)"
        " OR vouches_received <> (SELECT count(*) FROM vouches WHERE vouchee_id = r.user_id)",
        "UPDATE reputation_cache SET vouches_received = vouches_received + 1",
    ),
    "everybody has a profile, a reputation and the identifier of the trigger": (
        "SELECT FROM users u LEFT JOIN profiles p ON p.user_id = u.id LEFT JOIN reputation_cache r ON r.user_id = u.id"
        " WHERE p.user_id IS NULL OR r.user_id IS NULL OR markov_user_id IS DISTINCT FROM 'gotong_royong:' || u.id",
        "DELETE FROM profiles",
    ),
    "accounts change and are used after they are made": (
        "SELECT FROM users WHERE updated_at <= created_at OR last_login <= created_at",
        "UPDATE users SET last_login = '2023-02-01'",
    ),
    "an event was tried if and only if it is not pending, and a failed one is a dead letter": (
        "SELECT FROM webhook_events e LEFT JOIN webhook_failures f USING (event_id, payload)"
        " WHERE (e.status = 'pending') <> (e.attempts = 0) OR (e.attempts = 0) <> (e.last_attempt_at IS NULL)"
        " OR e.last_attempt_at <= e.created_at OR (e.status = 'failed') <> (f.id IS NOT NULL)",
        "DELETE FROM webhook_failures",
    ),
    "events tell of what is there": (
        "SELECT FROM webhook_events WHERE NOT CASE event_type"
        " WHEN 'vouch_submitted' THEN EXISTS (SELECT FROM vouches WHERE id::text = payload->>'vouch')"
        " WHEN 'por_evidence' THEN EXISTS (SELECT FROM evidence WHERE id::text = payload->>'evidence')"
        " ELSE EXISTS (SELECT FROM contributions WHERE id::text = payload->>'contribution') END",
        "DELETE FROM vouches",
    ),
}


def test_it_knows_every_table():
    models = [model for app in loading.APPS for model in apps.get_app_config(app).get_models()]
    assert set(COLUMNS) == {model._meta.db_table for model in models}
    assert len(COLUMNS) == 15


@pytest.mark.django_db(transaction=True)
def test_every_table_gets_its_share():
    output = load("--users", "100")
    rows = counts()
    assert all(rows.values())
    assert [rows[table] for table in ("users", "profiles", "reputation_cache", "skills")] == [100] * 4
    assert (rows["tasks"], rows["vouches"], rows["contributions"]) == (500, 500, 1000)
    assert rows["evidence"] == pytest.approx(2000, rel=0.1)
    for table, number in rows.items():
        assert f"{number:,}  {table}\n" in output
    assert f"{sum(rows.values()):,}  rows in " in output


@pytest.mark.parametrize("users", [2, 3, 25, 60])
@pytest.mark.django_db(transaction=True)
def test_the_rows_fit_together(users, small_neighborhoods):
    load("--users", str(users))
    assert all(counts().values())
    assert [rule for rule, (broken, _) in RULES.items() if ask(broken)] == []


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.django_db
def test_a_rule_can_fail(rule):
    load()
    broken, breaks = RULES[rule]
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL DEFERRED")
        cursor.execute(breaks)
    assert ask(broken)


@pytest.mark.django_db(transaction=True)
def test_every_row_is_valid_for_its_model():
    load()
    for app in loading.APPS:
        for model in apps.get_app_config(app).get_models():
            relations = [field.name for field in model._meta.fields if field.is_relation]
            for row in model._default_manager.all():
                row.clean_fields(exclude=relations)


@pytest.mark.django_db(transaction=True)
def test_everything_happens_between_two_fixed_days():
    load()
    for app in loading.APPS:
        for model in apps.get_app_config(app).get_models():
            for field in model._meta.fields:
                if field.get_internal_type() == "DateTimeField":
                    moments = model._default_manager.exclude(**{field.name: None}).order_by(field.name)
                    assert getattr(moments.first(), field.name) >= datetime(2023, 2, 1, tzinfo=UTC)
                    assert getattr(moments.last(), field.name) < datetime(2026, 2, 1, 1, tzinfo=UTC)


@pytest.mark.django_db(transaction=True)
def test_keys_are_random_uuids_and_witnesses_come_from_inside_and_outside():
    load()
    for table, columns in COLUMNS.items():
        if columns.startswith("id,"):
            assert ask(f"SELECT id FROM {table} WHERE id::text !~ '^.{{14}}4.{{4}}[89ab]'") == []
    assert ask("SELECT FROM witnesses JOIN users ON users.id::text = witness_id")
    assert ask("SELECT FROM witnesses WHERE witness_id IS NOT NULL AND witness_id NOT IN (SELECT id::text FROM users)")


@pytest.mark.django_db(transaction=True)
def test_the_same_numbers_give_the_same_bytes_and_others_do_not(small_neighborhoods):
    load()
    first = digests()
    empty()
    load("--users", "20", "--seed", "1")
    assert digests() == first
    for other in (["--users", "20", "--seed", "2"], ["--users", "21"]):
        empty()
        load(*other)
        assert not {*digests().values()} & {*first.values()}


@pytest.mark.django_db(transaction=True)
def test_another_process_draws_the_same(monkeypatch):
    load("--users", "150")
    here = digests()
    empty()
    monkeypatch.setattr(ahead, "WORTH_A_PROCESS", 2)
    monkeypatch.setattr(demo.Demo, "rows", None)  # of this process
    load("--users", "150")
    assert digests() == here


def test_copy_reads_what_is_written():
    assert text([("a", None, True), ('{"a": "\\u00e9"}', 4.5, 7)]) == b'a\t\tTrue\n{"a": "\\\\u00e9"}\t4.5\t7\n'


def test_the_rows_stay_what_they_are_on_every_python():
    """A new value here means that everybody's demo changes, and that one already loaded is no longer what is drawn."""
    rows = demo.Demo(users=20, seed=1).rows(0)
    assert hashlib.sha256(repr(rows).encode()).hexdigest() == (
        "c28ff4f2ca4ad074b20c13674058fed260077a6905ff2bffee279f92f15c77fd"
    )


@pytest.mark.django_db(transaction=True)
def test_people_cannot_log_in():
    load()
    assert not any(user.has_usable_password() for user in User.objects.all())
    name = User.objects.first().username
    assert authenticate(username=name, password=demo.Demo(20, 1).password) is None
