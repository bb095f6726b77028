from django.conf import settings
from django.db import migrations

from tests.bench.shop.trials import TRIALS

TRIAL = TRIALS[settings.ASKED["trial"]]
SAFE = settings.CONTENDER.name == "ours" and TRIAL.safe


class Migration(migrations.Migration):
    atomic = not SAFE

    dependencies = [("shop", "0001_initial")]

    operations = [migrations.RunSQL(SAFE, state_operations=[TRIAL.operation])] if SAFE else [TRIAL.operation]
