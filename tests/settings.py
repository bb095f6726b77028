"""The project's settings, with the secret key that only the tests use."""

import os

os.environ.setdefault("SECRET_KEY", "for-tests-only-" + "0123456789" * 5)

from gotong_royong.settings import *  # noqa: E402, F403

STORAGES["staticfiles"]["BACKEND"] = "django.contrib.staticfiles.storage.StaticFilesStorage"  # noqa: F405
SECURE_SSL_REDIRECT = False
