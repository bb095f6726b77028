"""Does search find what it says, and does every relation complete, without reading whole tables?"""

from uuid import uuid4

import pytest
from django.contrib import admin
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from accounts.models import Profile, ReputationCache, Skill, User, Vouch
from contributions.models import Contribution, Evidence, Verification, WebhookEvent, WebhookFailure, Witness
from tasks.models import Task, TaskAssignment
from tests import samples
from tests.admin.conftest import TABLES, every_table, rows_listed, url

pytestmark = [
    pytest.mark.once,
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:No directory at:UserWarning"),  # no static files are collected for tests
]

# Search


def findable(rows):
    """Return for each table texts that find its second sample, and only this one."""
    return {
        User: ["user1", "USER1", "mail1", "mail1@example.org", f"gotong_royong:{rows.user[1].pk}"],
        Profile: [rows.user[1].pk, "user1", "mail1@example.org"],
        Skill: ["skill1", "ILL1", "category1"],
        Vouch: ["markov:vouch1"],
        ReputationCache: [rows.user[1].pk, "user1", "MAIL1@example.org", "tier1"],
        Task: [],
        TaskAssignment: [rows.task[1].pk, "user1", "mail1@example.org"],
        Contribution: ["markov:contribution1", rows.task[1].pk, "user1", "Mail1@Example.org"],
        Evidence: ["0" * 63 + "1", rows.contribution[1].pk],
        Witness: ["outside:1", rows.evidence[1].pk],
        Verification: [rows.contribution[1].pk, "user0"],
        WebhookEvent: ["event1"],
        WebhookFailure: ["failed1"],
    }


@every_table
def test_search_finds_one_row(admin_client, rows, model):
    row = getattr(rows, model._meta.model_name)[1]
    whole_id = [] if model is Skill else [row.pk, str(row.pk).upper(), f" {row.pk} "]
    for text in findable(rows)[model] + whole_id:
        assert rows_listed(admin_client.get(url(model, "changelist", q=text))) == [row], text


@every_table
def test_search_of_garbage_finds_nothing(admin_client, rows, model):
    for text in ["nothing", uuid4(), "'; --", "%25", "\\", "a b", "ü" * 300, "%F0%9F%8C%B1", "{0}"]:
        assert rows_listed(admin_client.get(url(model, "changelist", q=text))) == [], text
    assert admin_client.get(url(model, "changelist", q="%00")).status_code == 200


@pytest.mark.parametrize("who", ["user1", "mail1@example.org"])
def test_search_finds_all_tasks_that_somebody_made_or_took_on(admin_client, rows, who):
    found = rows_listed(admin_client.get(url(Task, "changelist", q=who)))
    assert {task.pk for task in found} == {rows.task[1].pk, rows.task[2].pk}
    found = rows_listed(admin_client.get(url(Vouch, "changelist", q=who)))
    assert {vouch.pk for vouch in found} == {rows.vouch[1].pk, rows.vouch[2].pk}


@every_table
def test_search_says_what_it_finds(admin_client, model):
    assert admin.site.get_model_admin(model).search_help_text in admin_client.get(
        url(model, "changelist")
    ).content.decode().replace("&#x27;", "'")


def test_search_joins_no_tables_and_ignores_no_index(admin_client, rows):
    for model in TABLES:
        if model is Skill:
            continue
        with CaptureQueriesContext(connection) as queries:
            admin_client.get(url(model, "changelist", q="user1"))
        searches = [query["sql"] for query in queries if f'FROM "{model._meta.db_table}"' in query["sql"]]
        assert searches
        assert not [sql for sql in searches if "JOIN" in sql or "LIKE" in sql or "UPPER" in sql or "::v" in sql]


# Autocompletion


def complete(client, model, field, term):
    options = model._meta
    response = client.get(
        reverse("admin:autocomplete"),
        {"app_label": options.app_label, "model_name": options.model_name, "field_name": field, "term": term},
    )
    assert response.status_code == 200
    return [choice["text"] for choice in response.json()["results"]]


@every_table
def test_every_relation_completes(admin_client, rows, model):
    relations = [field for field in model._meta.fields if field.is_relation]
    assert relations or model in (User, Skill, WebhookEvent, WebhookFailure)
    for field in relations:
        row = getattr(rows, field.related_model._meta.model_name)[1]
        assert len(complete(admin_client, model, field.name, "")) >= 3
        term = row.name if field.related_model is Skill else row.pk
        assert complete(admin_client, model, field.name, term) == [str(row)]
        assert complete(admin_client, model, field.name, "\0nothing") == []


def test_users_complete_by_the_beginning_of_username_or_email(admin_client):
    for name, email in [("ani", "zz1"), ("budi", "anggun"), ("an", "zz2"), ("cani", "zz3"), ("Dewi", "zz4")]:
        User.objects.create_user(name, f"{email}@example.org")
    assert complete(admin_client, Vouch, "voucher", "an") == ["an", "ani", "budi"]
    assert complete(admin_client, Vouch, "voucher", "AN") == ["an", "ani", "budi"]
    assert complete(admin_client, Vouch, "voucher", "anggun@") == ["budi"]
    assert complete(admin_client, Vouch, "voucher", "Dew") == ["Dewi"]


def test_users_that_complete_are_a_bounded_number(admin_client):
    samples.make(150)
    assert admin_client.get(url(User, "changelist", q="user")).context["cl"].result_count == 100


def test_users_complete_in_lower_case_far_from_what_was_typed(admin_client):
    """In the collation C all capitals come first, so that what is typed in capitals has other neighbors."""
    names = ["ani", *(f"M{number}" for number in range(110))]
    User.objects.bulk_create(User(id=uuid4(), username=name, email=f"zz{name}@example.org".lower()) for name in names)
    assert complete(admin_client, Vouch, "voucher", "AN") == ["ani"]
