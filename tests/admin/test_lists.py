"""Are lists of many rows quick, and true all the same?"""

import pytest
from django.contrib import admin
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts.models import Skill
from contributions.models import Contribution, Evidence
from gotong_royong.admin import Paginator
from tests import samples
from tests.admin.conftest import TABLES, analyze, rows_listed, url

pytestmark = [
    pytest.mark.once,
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:No directory at:UserWarning"),  # no static files are collected for tests
]

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
