"""Who may come in, and what does every page of every table show, take and refuse?"""

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from accounts.models import Profile, ReputationCache, Skill, User, UserSkill, Vouch
from contributions.models import Contribution, Evidence, Verification, WebhookEvent, WebhookFailure, Witness
from tasks.models import Task, TaskAssignment
from tests import samples
from tests.admin.conftest import PASSWORD, TABLES, Browser, every_table, rows_listed, send, url

pytestmark = [
    pytest.mark.once,
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:No directory at:UserWarning"),  # no static files are collected for tests
]

# Who may come in


def test_every_table_has_a_page_and_groups_too():
    assert {*TABLES, Group} <= admin.site._registry.keys()
    assert len(TABLES) == 13


def test_anonymous_is_sent_to_log_in(client):
    for model in TABLES:
        assert client.get(url(model, "changelist")).url.startswith(reverse("admin:login"))


def test_staff_without_permission_is_refused(client):
    client.force_login(User.objects.create_user("helper", "helper@example.org", PASSWORD, is_staff=True))
    for model in TABLES:
        assert client.get(url(model, "changelist")).status_code == 403
    assert client.get(reverse("admin:index")).status_code == 200


@pytest.mark.parametrize("name", ["boss", "boss@example.org", "Boss@Example.org"])
def test_login_by_username_or_email(client, name):
    User.objects.create_superuser("boss", "boss@example.org", PASSWORD)
    page = client.get(reverse("admin:login"))
    assert "Username or email" in page.content.decode()
    assert "Gotong Royong" in page.content.decode()
    send(client, reverse("admin:login"), username=name, password="wrong")
    assert "_auth_user_id" not in client.session
    send(client, reverse("admin:login"), username=name, password=PASSWORD)
    assert client.get(reverse("admin:index")).status_code == 200


def test_login_form_has_room_for_the_longest_email(client):
    assert 'maxlength="255"' in client.get(reverse("admin:login")).content.decode()


# Every page of every table


@every_table
def test_pages_of_a_table(admin_client, rows, model):
    row = getattr(rows, model._meta.model_name)[0]
    for address in [
        url(model, "changelist"),
        url(model, "add"),
        *(url(model, page, row.pk) for page in ("change", "history", "delete")),
    ]:
        assert admin_client.get(address).status_code == 200, address


@every_table
def test_every_filter_lists_the_rows_it_says(admin_client, rows, model):
    page = admin_client.get(url(model, "changelist"))
    for spec in page.context["cl"].filter_specs:
        name = spec.field_path
        for choice in spec.choices(page.context["cl"]):
            listed = rows_listed(admin_client.get(url(model, "changelist") + choice["query_string"]))
            values = {str(getattr(row, name)) for row in listed}
            assert choice["display"] == "All" or len(values) <= 1, choice
            assert choice["display"] != "All" or len(listed) >= 3


@every_table
def test_every_column_that_may_be_sorted_by(admin_client, rows, model):
    page = admin_client.get(url(model, "changelist")).context["cl"]
    for number, name in enumerate(page.list_display):
        if page.sortable_by is None or name in page.sortable_by:
            for order in (number, -number):
                assert len(rows_listed(admin_client.get(url(model, "changelist", o=order)))) >= 3


@every_table
def test_queries_of_a_list_do_not_grow_with_its_rows(admin_client, model):
    def queries():
        with CaptureQueriesContext(
            connection,
        ) as queries:
            response = admin_client.get(url(model, "changelist"))
            assert response.status_code == 200
        return len(rows_listed(response)), [query["sql"] for query in queries]

    samples.make(3)
    queries()  # once without counting, for what Django caches
    few_rows, few_queries = queries()
    samples.make(30, start=3)
    many_rows, many_queries = queries()
    assert many_rows == few_rows + 30
    assert len(many_queries) == len(few_queries), many_queries


@every_table
def test_a_form_sent_as_it_came_changes_nothing(admin_client, rows, model):
    row = getattr(rows, model._meta.model_name)[0]

    def columns():
        return {**model.objects.filter(pk=row.pk).values().get(), "updated_at": None}

    before = columns()
    response = send(admin_client, url(model, "change", row.pk))
    assert response.status_code == 302, response.context["errors"]
    assert columns() == before
    assert Profile.objects.count() == ReputationCache.objects.count() == 3


def new(rows):
    """Return what somebody must fill in to add a row of each table, and what it then holds besides."""
    user, other = rows.user[0].pk, rows.user[1].pk
    someone = User.objects.create_user("nobody", "nobody@example.org").pk
    task, contribution = rows.task[0].pk, rows.contribution[0].pk
    time = {"timestamp_0": "2026-03-07", "timestamp_1": "12:00:00"}
    return {
        User: ({"username": "ani", "email": "ani@example.org", "password1": PASSWORD, "password2": PASSWORD}, {}),
        Profile: ({"user": someone}, {"bio": None, "location": None, "avatar_url": None}),
        Skill: ({"name": "weaving"}, {"category": None, "description": None}),
        Vouch: ({"voucher": user, "vouchee": other}, {"markov_vouch_id": None, "weight_hint": None, "message": None}),
        ReputationCache: ({"user": someone, "reputation_score": "1.5"}, {"contributions_count": 0}),
        Task: ({"title": "Dig", "creator": user}, {"status": "open", "metadata": None, "completed_at": None}),
        TaskAssignment: ({"task": task, "user": user}, {"status": "active", "completed_at": None}),
        Contribution: (
            {"title": "Dug", "user": user},
            {
                "contribution_type": "task_completion",
                "verification_status": "pending",
                "markov_contribution_id": None,
                "evidence_url": None,
            },
        ),
        Evidence: (
            {"contribution": contribution, "evidence_type": "gps_verification", "file_url": "s3://file", **time},
            {"media_hash": None, "metadata": None},
        ),
        Witness: ({"evidence": rows.evidence[0].pk, "witness_name": "Budi"}, {"witness_id": None, "statement": None}),
        Verification: ({"contribution": contribution, "verifier": other, "outcome": "approved"}, {"notes": None}),
        WebhookEvent: (
            {"event_id": "new", "event_type": "por_evidence", "payload": '{"a": 1}'},
            {"payload": {"a": 1}, "status": "pending", "attempts": 0, "error_message": None},
        ),
        WebhookFailure: (
            {"event_type": "por_evidence", "payload": "[1]"},
            {"payload": [1], "event_id": None, "attempts": 0},
        ),
    }


@every_table
def test_adding_a_row(admin_client, rows, model):
    filled_in, besides = new(rows)[model]
    before = set(model.objects.values_list("pk", flat=True))
    response = send(admin_client, url(model, "add"), **filled_in)
    assert response.status_code == 302, response.context["errors"]
    row = model.objects.exclude(pk__in=before).get()
    assert {name: getattr(row, name) for name in besides} == besides
    for field in model._meta.fields:
        if field.name in ("created_at", "assigned_at", "cached_at", "updated_at"):
            assert getattr(row, field.name) is not None
    assert response.url == url(model, "change", row.pk) if model is User else url(model, "changelist")


@pytest.mark.parametrize("model", [Vouch, Contribution])
def test_the_markov_id_is_shown_and_never_asked_for(admin_client, rows, model):
    name, row = f"markov_{model._meta.model_name}_id", getattr(rows, model._meta.model_name)[0]
    assert name not in admin_client.get(url(model, "add")).content.decode()
    page = admin_client.get(url(model, "change", row.pk))
    assert getattr(row, name) in page.content.decode()
    assert name not in Browser(page).names


@pytest.mark.parametrize("model", [Vouch, Contribution])
def test_two_rows_without_a_markov_id_do_not_collide(admin_client, rows, model):
    filled_in, _ = new(rows)[model]
    for _ in range(2):
        assert send(admin_client, url(model, "add"), **filled_in).status_code == 302
    assert model.objects.filter(**{f"markov_{model._meta.model_name}_id": None}).count() == 2


def test_an_emptied_text_is_null_not_empty(admin_client, rows):
    task = rows.task[0]
    Task.objects.filter(pk=task.pk).update(description="Soon.", location="Here")
    send(admin_client, url(Task, "change", task.pk), description="", location="", metadata="")
    task.refresh_from_db()
    assert (task.description, task.location, task.metadata) == (None, None, None)


def test_json_is_shown_line_by_line(admin_client, rows):
    task = rows.task[0]
    metadata = Browser(admin_client.get(url(Task, "change", task.pk))).data["metadata"]
    assert metadata.count("\n") == 6
    assert '\n    "spade",\n' in metadata


def test_relations_are_never_a_select_of_all_rows(admin_client, rows):
    for model in TABLES:
        for page in (url(model, "add"), url(model, "change", getattr(rows, model._meta.model_name)[0].pk)):
            content = admin_client.get(page).content.decode()
            for other in ("user1", "skill1", "task1", "contribution1"):  # no first row is of a second one
                assert f">{other}</option>" not in content
    page = admin_client.get(url(Vouch, "change", rows.vouch[0].pk))
    assert b">user0</option>" in page.content


# Users


def test_a_user_made_in_the_admin_can_log_in(admin_client, client):
    fields = {"username": "ani", "email": "Ani@Example.org", "password1": PASSWORD, "password2": PASSWORD}
    send(admin_client, url(User, "add"), **fields)
    ani = User.objects.get(username="ani")
    assert ani.email == "ani@example.org"
    assert ani.markov_user_id == f"gotong_royong:{ani.pk}"
    assert ani.is_active
    assert not ani.is_staff
    assert ani.password.startswith("argon2")
    send(admin_client, url(User, "change", ani.pk), is_staff="on")
    assert Client().login(username="ani@example.org", password=PASSWORD)
    send(client, reverse("admin:login"), username="ani", password=PASSWORD)
    assert client.get(reverse("admin:index")).status_code == 200


def test_a_taken_email_is_refused_at_its_field(admin_client, rows):
    fields = {"username": "ani", "email": "MAIL0@example.org", "password1": PASSWORD, "password2": PASSWORD}
    response = send(admin_client, url(User, "add"), **fields)
    assert "email" in response.context["adminform"].form.errors


def test_a_password_is_changed_in_the_admin(admin_client, rows):
    address = reverse("admin:auth_user_password_change", args=[rows.user[0].pk])
    assert send(admin_client, address, password1=PASSWORD, password2=PASSWORD).status_code == 302
    assert Client().login(username="user0", password=PASSWORD)


def test_a_profile_is_written_on_the_users_page(admin_client):
    user = User.objects.create_user("ani", "ani@example.org")
    send(admin_client, url(User, "change", user.pk), **{"profile-0-location": "Bandung"})
    user.profile.refresh_from_db()
    assert (user.profile.location, user.profile.bio) == ("Bandung", None)


def test_reputation_is_only_read_on_the_users_page(admin_client, rows):
    page = admin_client.get(url(User, "change", rows.user[1].pk))
    assert "tier1" in page.content.decode()
    assert not [name for name in Browser(page).data if "reputation_score" in name]


# Rows with a composite key


@pytest.mark.parametrize(
    ("model", "others"), [(User, ["skill0"]), (Skill, ["user0"]), (Task, ["skill0"])], ids=lambda value: str(value)
)
def test_composite_rows_are_on_their_parents_page(admin_client, rows, model, others):
    parent = getattr(rows, model._meta.model_name)[0]
    page = admin_client.get(url(model, "change", parent.pk)).content.decode()
    other = {"skill0": rows.skill[0], "user0": rows.user[0]}[others[0]]
    assert f'<a href="{url(type(other), "change", other.pk)}">{other}</a>' in page
    assert "there are more" not in page


def test_a_hundred_composite_rows_are_shown_in_one_query(admin_client, rows):
    skill = rows.skill[0]

    def page():
        with CaptureQueriesContext(connection) as queries:
            content = admin_client.get(url(Skill, "change", skill.pk)).content.decode()
        return content, len(queries)

    page()
    _, before = page()
    users = samples.make(100, start=3).user
    UserSkill.objects.bulk_create(UserSkill(user=user, skill=skill) for user in users)
    content, after = page()
    assert content.count("/admin/accounts/user/") - content.count('/admin/accounts/user/"') >= 100
    assert "These are 100 of them; there are more." in content
    assert after == before
