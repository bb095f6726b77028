"""The admin, through Django's client on a real database: every page of every table, and lists as if of many rows."""

from html.parser import HTMLParser
from uuid import uuid4

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Group
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from accounts.models import Profile, ReputationCache, Skill, User, UserSkill, Vouch
from contributions.models import (
    Contribution,
    Evidence,
    Verification,
    WebhookEvent,
    WebhookFailure,
    Witness,
)
from gotong_royong.admin import Paginator
from tasks.models import Task, TaskAssignment, TaskSkill
from tests import samples

PASSWORD = "a-Fine-Long-passphrase"
COMPOSITE = {UserSkill, TaskSkill}
TABLES = [
    model
    for app in ("accounts", "tasks", "contributions")
    for model in apps.get_app_config(app).get_models()
    if model not in COMPOSITE
]
every_table = pytest.mark.parametrize("model", TABLES, ids=lambda model: model.__name__)

pytestmark = [
    pytest.mark.once,
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:No directory at:UserWarning"),  # no static files are collected for tests
]


def url(model, page, *args, **query):
    options = model._meta
    address = reverse(f"admin:{options.app_label}_{options.model_name}_{page}", args=args)
    return address + ("?" + "&".join(f"{name}={value}" for name, value in query.items()) if query else "")


def rows_listed(response):
    return list(response.context["cl"].result_list)


class Browser(HTMLParser):
    """Collects what a browser would send of a page's main form."""

    def __init__(self, response):
        super().__init__()
        self.data, self.names, self.select, self.textarea = {}, set(), None, None
        self.feed(response.content.decode())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        name, kind = attributes.get("name"), attributes.get("type")
        self.names.add(name)
        if tag == "select":
            self.select, self.multiple = name, "multiple" in attributes
        elif tag == "option" and self.select and not self.multiple:
            if "selected" in attributes or self.select not in self.data:
                self.data[self.select] = attributes["value"]
        elif tag == "option" and self.select and "selected" in attributes:
            self.data.setdefault(self.select, []).append(attributes["value"])
        elif tag == "textarea":
            self.textarea = name
            self.data[name] = ""
        elif tag == "input" and name and kind != "submit":
            if kind not in ("checkbox", "radio"):
                self.data[name] = attributes.get("value", "")
            elif "checked" in attributes:
                self.data[name] = attributes.get("value", "on")

    def handle_data(self, text):
        if self.textarea:
            self.data[self.textarea] += text

    def handle_endtag(self, tag):
        if tag == "textarea":
            self.data[self.textarea] = self.data[self.textarea].removeprefix("\n")
            self.textarea = None
        elif tag == "select":
            self.select = None


def send(client, address, **changes):
    """Fill in a page's form as a browser would, and send it."""
    form = Browser(client.get(address))
    assert changes.keys() <= form.names, "the page does not ask for this"
    return client.post(address, {**form.data, **changes})


@pytest.fixture
def admin_user():
    """A superuser without a password, because hashing one takes longer than a page."""
    return User.objects.create_superuser("admin", "admin@example.org")


@pytest.fixture
def rows():
    return samples.make(3)


@pytest.fixture
def few(monkeypatch):
    """Make a list of more than ten rows a big one; at up to a hundred, the planner is not believed."""
    monkeypatch.setattr(Paginator, "exact_up_to", 10)
    for model in (Contribution, WebhookEvent):
        monkeypatch.setattr(admin.site.get_model_admin(model), "list_per_page", 5)


def analyze(model):
    with connection.cursor() as cursor:
        cursor.execute(f"ANALYZE {model._meta.db_table}")


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


# Big tables


def test_a_small_table_is_counted(admin_client, rows):
    page = admin_client.get(url(Contribution, "changelist"))
    assert page.context["cl"].result_count == 3
    assert "3 contributions" in page.content.decode()
    assert "about" not in page.content.decode()


@pytest.mark.usefixtures("few")
def test_a_big_table_is_estimated_and_the_page_says_so(admin_client):
    samples.make(150)
    analyze(Contribution)
    with CaptureQueriesContext(connection) as queries:
        page = admin_client.get(url(Contribution, "changelist"))
    content = page.content.decode()
    assert "about 150 contributions" in content
    assert "about 150 results" not in content
    assert list(page.context["cl"].paginator.get_elided_page_range(1)) == [1, 2, "…"]
    assert not [query["sql"] for query in queries if "COUNT(" in query["sql"]]
    assert "actions" in content
    assert "Select all" not in content.replace("Select all objects on this page", "")


@pytest.mark.usefixtures("few")
def test_a_filtered_estimate_is_of_the_filtered_rows(admin_client):
    samples.make(300)
    analyze(Contribution)
    page = admin_client.get(url(Contribution, "changelist", verification_status__exact="pending"))
    assert "about 100 contributions" in page.content.decode()
    assert "about 100 results" in page.content.decode()
    found = admin_client.get(url(Contribution, "changelist", q="markov:contribution7")).content.decode()
    assert "1 contribution\n" in found


def test_a_table_that_was_never_analyzed_is_counted_up_to_the_limit(admin_client, monkeypatch):
    monkeypatch.setattr(Paginator, "exact_up_to", 100)
    samples.make(100)
    assert "\n100 contributions" in admin_client.get(url(Contribution, "changelist")).content.decode()
    samples.make(2, start=100)
    assert "about " in admin_client.get(url(Contribution, "changelist")).content.decode()


def pages(client, **query):
    """Go from page to page as long as a next one is offered, and return all rows."""
    found, number = [], 1
    while True:
        page = client.get(url(Contribution, "changelist", p=number, **query))
        found += [row.pk for row in rows_listed(page)]
        if f"p={number + 1}" not in page.content.decode():
            return found, page
        number += 1


@pytest.mark.usefixtures("few")
def test_an_estimate_that_is_too_low_hides_no_row(admin_client):
    """The planner multiplies the shares of the two filters, which here always go together."""
    contributions = samples.make(200).contribution
    half = [row.pk for row in contributions[:100]]
    Contribution.objects.update(verification_status="verified", contribution_type="mentoring")
    Contribution.objects.filter(pk__in=half).update(verification_status="rejected", contribution_type="custom")
    analyze(Contribution)
    filters = {"verification_status__exact": "rejected", "contribution_type__exact": "custom"}
    first = admin_client.get(url(Contribution, "changelist", **filters)).context["cl"].result_count
    assert str(first).startswith("about ")
    assert first < 80
    found, last = pages(admin_client, **filters)
    assert sorted(found) == sorted(half)
    assert last.context["cl"].result_count == 100


@pytest.mark.usefixtures("few")
def test_an_estimate_that_is_too_high_is_corrected_by_the_last_page(admin_client):
    contributions = samples.make(150).contribution
    analyze(Contribution)
    Contribution.objects.exclude(pk__in=[row.pk for row in contributions[:7]]).delete()
    assert "about 150 contributions" in admin_client.get(url(Contribution, "changelist")).content.decode()
    found, last = pages(admin_client)
    assert len(found) == 7
    assert "7 contributions" in last.content.decode()
    beyond = admin_client.get(url(Contribution, "changelist", p=20))
    assert beyond.url.endswith("?e=1")
    Contribution.objects.all().delete()
    assert admin_client.get(url(Contribution, "changelist", e=1)).status_code == 200


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("number", [0, -1, 201, 10**30, "x"])
def test_no_page_is_so_deep_that_the_table_is_read_to_reach_it(admin_client, number):
    samples.make(150)
    analyze(Contribution)
    with CaptureQueriesContext(connection) as queries:
        response = admin_client.get(url(Contribution, "changelist", p=number))
    assert response.status_code in (200, 302)
    assert not [query["sql"] for query in queries if " OFFSET " in query["sql"]]


def test_dates_are_found_without_reading_the_table(admin_client, rows):
    days = ["2024-02-29", "2024-12-31", "2025-01-01", "2026-03-07", "2026-03-08"]
    for evidence, day in zip(samples.make(5, start=3).evidence, days, strict=True):
        Evidence.objects.filter(pk=evidence.pk).update(timestamp=f"{day}T23:59:59.5Z")

    def links(**query):
        with CaptureQueriesContext(connection) as queries:
            page = admin_client.get(url(Evidence, "changelist", **query))
        assert not [
            query["sql"] for query in queries if any(word in query["sql"] for word in ("DISTINCT", "TRUNC", "EXTRACT"))
        ]
        content = page.content.decode()
        return content[content.index('class="toplinks"') : content.index('id="changelist-form"')], rows_listed(page)

    years, _ = links()
    assert [year for year in range(2020, 2030) if f"timestamp__year={year}" in years] == [2024, 2025, 2026]
    kind = Evidence.objects.get(timestamp__year=2025).evidence_type
    years, listed = links(evidence_type__exact=kind)
    assert "timestamp__year=2024" in years, "dates are those of the table, whatever the filter"
    assert {evidence.evidence_type for evidence in listed} == {kind}
    months, listed = links(timestamp__year=2024)
    assert [month for month in range(1, 13) if f"timestamp__month={month}&" in months] == [2, 12]
    assert len(listed) == 2
    days, listed = links(timestamp__year=2026, timestamp__month=3)
    assert [day for day in range(1, 32) if f"timestamp__day={day}&" in days] == [7, 8]
    assert len(listed) == 5
    _, listed = links(timestamp__year=2026, timestamp__month=3, timestamp__day=8)
    assert len(listed) == 1


@pytest.mark.parametrize("query", [{"timestamp__year": "x"}, {"timestamp__year": 2026, "timestamp__month": 13}])
def test_dates_that_are_none(admin_client, rows, query):
    assert admin_client.get(url(Evidence, "changelist", **query)).url.endswith("?e=1")


def test_dates_of_an_empty_table(admin_client):
    assert admin_client.get(url(Evidence, "changelist")).status_code == 200


def test_dates_up_to_the_last_year_there_is(admin_client, rows):
    Evidence.objects.filter(pk=rows.evidence[0].pk).update(timestamp="9999-12-31T12:00:00Z")
    assert "timestamp__year=9999" in admin_client.get(url(Evidence, "changelist")).content.decode()


def test_a_date_hierarchy_needs_an_index_on_its_column():
    for model in TABLES:
        column = admin.site.get_model_admin(model).date_hierarchy
        assert column is None or column in {index.fields[0].lstrip("-") for index in model._meta.indexes}, model


def test_a_filter_needs_choices():
    for model in set(TABLES) - {Skill}:
        for name in admin.site.get_model_admin(model).list_filter:
            field = model._meta.get_field(name)
            assert field.choices or field.get_internal_type() == "BooleanField"


def test_a_sortable_column_needs_an_index():
    for model in set(TABLES) - {Skill}:
        indexes = {index.fields[0].lstrip("-") for index in model._meta.indexes}
        unique = {rule.fields[0] for rule in model._meta.total_unique_constraints}
        options = admin.site.get_model_admin(model)
        assert {*options.sortable_by, *(name.lstrip("-") for name in options.ordering)} <= indexes | unique | {"pk"}


def test_a_big_list_starts_with_an_index(admin_client, rows):
    """However many rows there are: with sequential scans forbidden, what is left must not be a sort of all rows."""
    for model in set(TABLES) - {Skill}:
        with CaptureQueriesContext(connection) as queries:
            admin_client.get(url(model, "changelist"))
        page = next(
            query["sql"] for query in queries if " ORDER BY " in query["sql"] and model._meta.db_table in query["sql"]
        )
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute(f"EXPLAIN {page} LIMIT 101")
            plan = "\n".join(line for (line,) in cursor.fetchall())
        assert "Index Scan" in plan, (model, plan)
        assert "Incremental Sort" in plan or "Sort" not in plan, (model, plan)


@pytest.mark.django_db(transaction=True)
def test_a_value_that_the_native_enum_does_not_have(admin_client):
    assert admin_client.get(url(Contribution, "changelist", contribution_type__exact="x")).url.endswith("?e=1")


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
