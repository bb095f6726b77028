"""The files of an app with a model, a backfill of its rows, and a migration that does that."""

ITEM = """
class Item(models.Model):
    id = models.IntegerField(primary_key=True)
    size = models.IntegerField(null=True)

    class Meta:
        db_table = "items"
"""
FILL = """
from django.db.models import Q
from gotong_royong.zero_downtime.backfills import BackfillDeclaration

class Fill(BackfillDeclaration):
    model = "shop.Item"
    where = Q(size=None)
    update = {"size": 1}
"""
RUN_BACKFILL = """
from django.db import migrations, models
from gotong_royong.zero_downtime.operations import RunBackfill

class Migration(migrations.Migration):
    atomic = False
    dependencies = [("shop", "0002_size")]
    operations = [RunBackfill("shop.fill")]
"""
