"""The project's settings, with the secret key that only the tests use."""

import os

os.environ.setdefault("SECRET_KEY", "for-tests-only-" + "0123456789" * 5)

from gotong_royong.settings import *  # noqa: F403

SECURE_SSL_REDIRECT = False
STORAGES["staticfiles"]["BACKEND"] = "django.contrib.staticfiles.storage.StaticFilesStorage"  # noqa: F405
# A commit that does not wait for the disk is as visible to other sessions as one that does.
DATABASES["default"].setdefault("OPTIONS", {})["options"] = "-c synchronous_commit=off"  # noqa: F405
