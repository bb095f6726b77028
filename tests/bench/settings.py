"""The settings of a contender's process, which is told by its environment who it is and on what it runs."""

import json
import os

from tests.bench.contenders import CONTENDERS

ASKED = json.loads(os.environ["BENCH"])
CONTENDER = CONTENDERS[ASKED["contender"]]

DATABASES = {"default": {**ASKED["database"], "ENGINE": CONTENDER.engine}}
INSTALLED_APPS = [*CONTENDER.apps, *ASKED["apps"]]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = "for-the-benchmark-only"
USE_TZ = True
vars().update(CONTENDER.settings)
