"""Settings under which Django's own tests run with our app first; ``runtests.py`` has the list of apps."""

import __main__
from tests.zero_downtime.guests.django_suite.stock import *  # noqa: F403

__main__.ALWAYS_INSTALLED_APPS.insert(0, "gotong_royong.zero_downtime")
TEST_RUNNER = "tests.zero_downtime.guests.django_suite.runners.Ours"
