"""The project's settings, with the secret key that only the tests use, on an embedded server that only they use."""

import os

from tests import memory

os.environ.setdefault("SECRET_KEY", "for-tests-only-" + "0123456789" * 5)
HAS_A_SERVER = bool(os.environ.get("DATABASE_URL") or os.environ.get("EMBEDDED_POSTGRES_DIR"))
if not HAS_A_SERVER:  # from now on, as well as every process that this one begins
    os.environ["EMBEDDED_POSTGRES_DIR"] = str(memory.folder_of_a_server())

from gotong_royong.settings import *  # noqa: E402, F403

if not HAS_A_SERVER:
    memory.be_careless(DATABASES["default"])  # noqa: F405

SECURE_SSL_REDIRECT = False
STORAGES["staticfiles"]["BACKEND"] = "django.contrib.staticfiles.storage.StaticFilesStorage"  # noqa: F405
# A commit that does not wait for the disk is as visible to other sessions as one that does.
DATABASES["default"].setdefault("OPTIONS", {})["options"] = "-c synchronous_commit=off"  # noqa: F405
