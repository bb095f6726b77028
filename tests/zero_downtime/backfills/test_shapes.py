"""Does a backfill also do what is no plain table: joins, inherited models, views, partitions, keys of any type?"""

import pytest
from django.db import models
from django.db.models import F, Q

from gotong_royong.zero_downtime.backfills import declarations
from gotong_royong.zero_downtime.exceptions import BackfillRefused


class TestDeclarations:
    @pytest.mark.parametrize(
        ("update", "told"),
        [
            ({"note": "", "description": "", "weight": 1}, None),
            ({"note": F("weight")}, "Joined field references are not permitted"),
            ({"weight": "much"}, "Field 'weight' expected a number but got 'much'"),
        ],
    )
    def test_inherited_models_are_judged_without_a_database(self, declare, model, update, told):
        """As no database is at hand here."""
        top = model("Top", description=models.TextField(null=True), weight=models.IntegerField(null=True))
        sub = model("Sub", base=top, note=models.TextField(null=True))
        found = declarations.declared(declare(model="accounts.Sub", where=Q(description=None), update=update))
        if not told:
            assert declarations.model_of(found) is sub
            return
        with pytest.raises(BackfillRefused, match=f"^accounts.trial does not fit the models .*: {told}"):
            declarations.model_of(found)
