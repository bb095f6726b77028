"""Is a database guarded whatever it is called, unless a test runner made it?"""

import pytest

from gotong_royong.zero_downtime.models import Run
from tests.conftest import _database
from tests.databases import url

pytestmark = pytest.mark.once

NOT_GUARDED = "This run is neither guarded nor recorded: Django's test runner made the database"
TESTS = """
from django.db import connection
from django.test import TestCase
from gotong_royong.zero_downtime.models import Run

class RunTest(TestCase):
    def test_nothing_is_recorded(self):
        assert connection.settings_dict["NAME"] == "{name}", connection.settings_dict["NAME"]
        assert not Run.objects.exists()
"""


@pytest.fixture
def staging(scratch, django_db_blocker):
    with django_db_blocker.unblock(), _database(prefix="test_staging") as database:
        yield database


def test_staging_is_guarded_though_its_name_begins_with_test(shop, staging):
    shop.address = url(staging)
    assert "neither guarded" not in shop.succeed("migrate")
    assert Run.objects.using(staging.alias).get().status == "succeeded"


@pytest.mark.parametrize("name", [None, "their_own_test"])
def test_what_a_test_runner_made_is_not_guarded_and_the_run_says_so(shop, staging, name):
    shop.address = url(staging)
    if name:
        name = f"{staging.alias}_{name}"
        shop.settings(f"DATABASES['default']['TEST'] = {{'NAME': '{name}'}}\n")
    name = name or f"test_{staging.alias}"
    (shop.folder / "shop" / "tests.py").write_text(TESTS.format(name=name))
    done = shop.run("test", "--verbosity", "2")
    assert done.code == 0, done.err
    assert f"{NOT_GUARDED} {name}." in done.out
