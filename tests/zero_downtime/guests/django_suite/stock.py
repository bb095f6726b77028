"""Settings under which Django's own tests run, with nothing of ours."""

import json
import os

DATABASES = json.loads(os.environ["SUITE_DATABASES"])
SECRET_KEY = "of tests"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
USE_TZ = False
TEST_RUNNER = "tests.zero_downtime.guests.django_suite.runners.Stock"
