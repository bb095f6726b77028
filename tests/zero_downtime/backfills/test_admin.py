"""Can staff see backfills, and steer them only if they may?"""

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.urls import reverse

from accounts.models import User
from gotong_royong.zero_downtime.models import Backfill, BackfillRange, SetAside

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:No directory at:UserWarning"),  # no static files are collected for tests
]
LIST = "admin:zero_downtime_backfill_changelist"


@pytest.fixture
def row(db):
    row = Backfill.objects.create(
        name="accounts.trial", status="running", order="stripes", sweep=1, throttle="half speed"
    )
    BackfillRange.objects.create(backfill=row, sweep=1, number=1, share=0.25, rows_done=1234, batches=7)
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


def steer(client, action, row):
    data = {"action": action, "_selected_action": [row.pk]}
    return client.post(reverse(LIST), data, follow=True).content.decode()


def test_who_may_look_sees_it_and_steers_nothing(row, staff):
    client = staff("view_backfill")
    page = client.get(reverse(LIST)).content.decode()
    assert '<progress max="1" value="0.250"></progress> 25%' in page
    assert 'name="action"' not in page
    detail = client.get(reverse("admin:zero_downtime_backfill_change", args=[row.pk])).content.decode()
    assert '<meta http-equiv="refresh" content="2">' in detail
    assert "row 7: &lt;b&gt;no&lt;/b&gt;" in detail
    assert "half speed" in detail
    assert 'name="_save"' not in detail
    steer(client, "pause", row)
    row.refresh_from_db()
    assert row.status == "running"


def test_who_may_change_steers_and_it_is_written_down(row, staff):
    client = staff("change_backfill")
    for action, status in (("pause", "paused"), ("resume", "pending"), ("cancel", "canceled"), ("retry", "pending")):
        assert f"accounts.trial is {status}." in steer(client, action, row)
        assert LogEntry.objects.latest("pk").change_message == f"Made {status}."
    assert "ccounts.trial is pending, not paused" in steer(client, "resume", row)


def test_others_see_nothing(row, staff):
    assert staff().get(reverse(LIST)).status_code == 403
