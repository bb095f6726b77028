"""Can staff see backfills, and control them only if they may?"""

import re
from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from gotong_royong.zero_downtime.admin import recently_worked_on
from gotong_royong.zero_downtime.backfills.ranges import LEASE
from gotong_royong.zero_downtime.models import Backfill, BackfillRange, SetAside

pytestmark = [
    pytest.mark.once,
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:No directory at:UserWarning"),  # no static files are collected for tests
]
LIST = "admin:zero_downtime_backfill_changelist"


@pytest.fixture
def row(db):
    row = Backfill.objects.create(
        name="accounts.trial", status="running", order="stripes", sweep=1, throttle="half speed"
    )
    BackfillRange.objects.create(
        backfill=row, sweep=1, number=1, share=0.25, rows_done=1234, batches=7, lower=0, upper=2048, worker="this one"
    )
    SetAside.objects.create(backfill=row, key=["7"], error="<b>no</b>")
    return row


@pytest.fixture
def staff(client):
    def staff(*permissions):
        user = User.objects.create_user("staff", "staff@example.org", "a-Fine-Long-passphrase")
        user.is_staff = True
        user.save()
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        client.force_login(user)
        return client

    return staff


def act(client, action, row):
    data = {"action": action, "_selected_action": [row.pk]}
    return client.post(reverse(LIST), data, follow=True).content.decode()


def test_who_may_look_sees_it_and_controls_nothing(row, staff):
    client = staff("view_backfill")
    page = client.get(reverse(LIST)).content.decode()
    assert '<progress max="1" value="0.250"></progress> 25%, 1,234 rows' in page
    assert 'name="action"' not in page
    detail = client.get(reverse("admin:zero_downtime_backfill_change", args=[row.pk])).content.decode()
    assert '<meta http-equiv="refresh" content="2">' in detail
    assert re.search(r"<td>\d{4}-\d\d-\d\d [\d:]{8}</td><td>7</td><td>&lt;b&gt;no&lt;/b&gt;</td>", detail)
    assert "<td>blocks 0 to 2,048</td>" in detail
    assert "<td>1,234</td>" in detail
    assert "<td>this one</td>" in detail
    assert "half speed" in detail
    assert 'name="_save"' not in detail
    assert 'name="action"' not in detail
    act(client, "pause", row)
    row.refresh_from_db()
    assert row.status == "running"


def test_who_may_change_controls_and_it_is_written_down(row, staff):
    client = staff("change_backfill")
    for action, status in (("pause", "paused"), ("resume", "pending"), ("cancel", "canceled"), ("retry", "pending")):
        assert f"accounts.trial is {status}." in act(client, action, row)
        assert LogEntry.objects.latest("pk").change_message == f"Made {status}."
    assert "ccounts.trial is pending, not paused" in act(client, "resume", row)
    page = client.get(reverse("admin:zero_downtime_backfill_change", args=[row.pk])).content.decode()
    assert re.findall(r"<td>(\w+)</td><td>([^<]*), in the admin</td>", page) == [
        (action, "staff") for action in ("retry", "cancel", "resume", "pause")
    ]


def test_what_the_code_does_not_declare_is_not_retried_in_the_order_of_keys(row, staff):
    client = staff("change_backfill")
    for status in ("failed", "succeeded"):
        Backfill.objects.filter(pk=row.pk).update(status=status, order="keys")
        assert "No backfill accounts.trial is declared in the code" in act(client, "retry", row)
        row.refresh_from_db()
        assert row.status == status


def test_all_rows_are_not_done_a_second_time_at_one_click(row, staff, declare):
    declare(where=None)
    client = staff("change_backfill")
    Backfill.objects.filter(pk=row.pk).update(status="succeeded", order="keys")
    page = act(client, "retry", row)
    assert "so retry would do each of them a second time. If that is meant: backfill retry accounts.trial" in page
    row.refresh_from_db()
    assert (row.status, row.ranges.count(), row.events.count()) == ("succeeded", 1, 0)
    call_command("backfill", "retry", row.name)
    row.refresh_from_db()
    assert (row.status, row.ranges.count()) == ("pending", 0)


@pytest.mark.parametrize("order", ["keys", "stripes"])
def test_one_that_succeeded_and_knows_what_is_to_do_is_retried(row, staff, declare, order):
    declare()
    Backfill.objects.filter(pk=row.pk).update(status="succeeded", order=order)
    assert "accounts.trial is pending." in act(staff("change_backfill"), "retry", row)


def test_its_own_page_offers_the_ways_that_are_open_and_comes_back(row, staff):
    client = staff("change_backfill")
    page = reverse("admin:zero_downtime_backfill_change", args=[row.pk])
    for action, status, then in (
        ("pause", "paused", {"resume", "cancel"}),
        ("cancel", "canceled", {"retry"}),
        ("retry", "pending", {"pause", "cancel"}),
    ):
        assert f'name="action" value="{action}"' in client.get(page).content.decode()
        data = {"action": action, "_selected_action": [row.pk], "from_its_page": "1"}
        answer = client.post(reverse(LIST), data, follow=True)
        assert answer.redirect_chain == [(page, 302)]
        assert f"accounts.trial is {status}." in answer.content.decode()
        assert set(re.findall(r'name="action" value="(\w+)"', answer.content.decode())) == then


def test_what_was_worked_on_last_comes_first(row):
    now = timezone.now()
    for number, times in enumerate(
        [
            {"leased_until": now + timedelta(seconds=LEASE)},
            {"leased_until": now, "finished_at": now - timedelta(seconds=5)},
            {"leased_until": now + timedelta(seconds=LEASE - 3)},
        ],
        start=2,
    ):
        BackfillRange.objects.create(backfill=row, sweep=1, number=number, batches=1, **times)
    BackfillRange.objects.create(backfill=row, sweep=1, number=9)
    assert [part.number for part in recently_worked_on(row)] == [1, 2, 4, 3]


def test_queries_of_the_list_do_not_grow_with_its_rows(row, staff):
    client = staff("view_backfill")

    def queries():
        with CaptureQueriesContext(connection) as queries:
            page = client.get(reverse(LIST)).content.decode()
        return page, [query["sql"] for query in queries]

    _, with_one = queries()
    others = [
        Backfill(name=f"accounts.other{number}", status="running", sweep=2, started_at=timezone.now())
        for number in range(1, 10)
    ]
    for other in Backfill.objects.bulk_create(others):
        BackfillRange.objects.create(backfill=other, sweep=1, number=1, share=1.0, rows_done=other.pk)
        BackfillRange.objects.create(backfill=other, sweep=2, number=1, share=0.5, rows_done=1000)
    page, with_ten = queries()
    assert page.count("<progress") == 10
    assert '<progress max="1" value="0.250"></progress> 25%, 1,234 rows' in page
    for other in others:
        assert f'<progress max="1" value="0.500"></progress> 50%, {1000 + other.pk:,} rows' in page
    assert len(with_ten) == len(with_one), with_ten
    assert "zero_downtime_" in with_ten[-1]  # by which its session is known as one that watches


def test_its_own_page_asks_once_how_far_it_is(row, staff):
    client = staff("view_backfill")
    with CaptureQueriesContext(connection) as queries:
        client.get(reverse("admin:zero_downtime_backfill_change", args=[row.pk]))
    asked = [query["sql"] for query in queries]
    assert len([sql for sql in asked if "rows_done" in sql and "SUM" in sql]) == 1
    assert "zero_downtime_" in asked[-1]


def test_others_see_nothing(row, staff):
    assert staff().get(reverse(LIST)).status_code == 403
